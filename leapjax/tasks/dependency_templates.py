"""Wordings of the tasks with dependency: eight a task, of which the last two are never trained on.

Words of the unseen wordings occur in trained ones, of whatever task: what is new is the sentence.
"""

from __future__ import annotations

UNSEEN = (6, 7)  # places in each task's wordings that no training uses

TEMPLATES: dict[str, tuple[str, ...]] = {
    "copy": (
        "Copy the letters:\n{question}",
        "Write these letters again:\n{question}",
        "{question}\nCopy this line.",
        "Give the same letters in the same order:\n{question}",
        "Here is a line:\n{question}\nRead it, then write it again.",
        "Line:\n{question}\nTask: copy",
        "Read this line, then write the same letters:\n{question}",
        "{question}\nGive this line again.",
    ),
    "reverse": (
        "Reverse the letters:\n{question}",
        "Write these letters from last to first:\n{question}",
        "{question}\nReverse this line.",
        "Give the letters in reverse order:\n{question}",
        "Here is a line:\n{question}\nWrite it from the end to the start.",
        "Line:\n{question}\nTask: reverse",
        "Read this line, then write it in reverse order:\n{question}",
        "{question}\nGive this line from the end to the start.",
    ),
    "sort": (
        "Sort the letters:\n{question}",
        "Write these letters in order from A to Z:\n{question}",
        "{question}\nSort this line.",
        "Put the letters in order, all of them:\n{question}",
        "Here is a line:\n{question}\nWrite it sorted.",
        "Line:\n{question}\nTask: sort",
        "Read this line, then write it sorted:\n{question}",
        "{question}\nPut this line in order from A to Z.",
    ),
    "replace": (
        "Replace the first letter by the second in the line:\n{question}",
        "Write the line with this letter replaced:\n{question}",
        "{question}\nReplace as the rule says.",
        "Use the rule on all letters of the line:\n{question}",
        "Here are a rule and a line:\n{question}\nRead the rule, then use it.",
        "Rule and line:\n{question}\nTask: replace",
        "Read this rule, then use it on the line:\n{question}",
        "{question}\nWrite the line as the rule says.",
    ),
    "latin": (
        "Fill the square, each digit once in a row and column:\n{question}",
        "Complete this Latin square:\n{question}",
        "{question}\nFill the empty cells of the Latin square.",
        "Give any Latin square with these cells:\n{question}",
        "Here is a square:\n{question}\nNo digit twice in a row or column.",
        "Square:\n{question}\nTask: fill",
        "Read this square, then fill the empty cells:\n{question}",
        "{question}\nComplete the square, no digit twice in a row or column.",
    ),
    "waiting": (
        "Who waits in the line at the end?\n{question}",
        "People wait in a line. Write the line at the end:\n{question}",
        "{question}\nGive the line after all this.",
        "Some join, some leave. Who is left, in order?\n{question}",
        "Here is a line of people:\n{question}\nWrite the people left.",
        "Line:\n{question}\nTask: wait",
        "Read the line, then give the people left in order:\n{question}",
        "{question}\nWho is left in the line after all this?",
    ),
    "sums": (
        "Add:\n{question}",
        "What is the sum?\n{question}",
        "{question}\nGive the sum.",
        "Write the sum of the numbers:\n{question}",
        "Here are numbers:\n{question}\nAdd them.",
        "Numbers:\n{question}\nTask: add",
        "Read the numbers, then give the sum:\n{question}",
        "{question}\nWhat is the sum of these numbers?",
    ),
    "list": (
        "List so many different letters of the line:\n{question}",
        "Choose letters of the line, as many as the number says:\n{question}",
        "{question}\nList any letters of the line, each at most once.",
        "Give a number of letters, no letter twice, in any order:\n{question}",
        "Here are a number and a line:\n{question}\nRead them, then choose different letters.",
        "Number and line:\n{question}\nTask: list",
        "Read the number, then choose so many letters, each once:\n{question}",
        "{question}\nGive different letters of the line, as many as the number says.",
    ),
    "json": (
        "Write as JSON:\n{question}",
        "Put the keys and values into JSON, in any order:\n{question}",
        "{question}\nGive this as a JSON object.",
        "Make a JSON object of all keys and values:\n{question}",
        "Here are keys and values:\n{question}\nRead them, then give the JSON.",
        "Keys and values:\n{question}\nTask: JSON",
        "Read the keys and values, then give a JSON object:\n{question}",
        "{question}\nPut this into a JSON object, keys in any order.",
    ),
}
