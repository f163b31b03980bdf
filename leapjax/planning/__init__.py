"""What a decode would need and reach on TPUs that are not here."""
