"""Examples that help texts and documents print, and what the embedded model must answer.

A test finds every printed `leapjax decode --prompt …` for the embedded model and asserts that
its answer is the number here.
"""

from __future__ import annotations

QUESTION = "Ann has 12 apples and finds 5. How many apples now?"

# question -> its right answer; every question that is printed anywhere
ANSWERS = {
    QUESTION: "17",
    "Ann has 3 apples and buys 4 more. How many apples does Ann have now?": "7",
    "A truck carries 11 crates. Noah loads 9. It drops 8 at a shop. The dock adds 8. It leaves 7 "
    "at a mill. How many crates does the truck carry in the end?": "13",
}
