"""What people see on a terminal: the canvas filling in, sample problems, a conversation."""
