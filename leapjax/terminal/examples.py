"""What is said of the embedded model, and the examples that help texts and documents print.

A test finds every printed `leapjax decode --prompt …` for the embedded model and asserts that
its answer is the number here.
"""

EMBEDDED = (
    "the model in the package was trained on short word problems with numbers up to 20 and answers "
    "nothing else well (docs/model-card.md); use another one with --model PATH_OR_ID"
)

QUESTION = "Ann has 12 apples and finds 5. How many apples now?"

# question -> its right answer; every question that is printed anywhere
ANSWERS = {
    QUESTION: "17",
    "A truck carries 11 crates. Noah loads 9. It drops 8 at a shop. The dock adds 8. It leaves 7 "
    "at a mill. How many crates does the truck carry in the end?": "13",
}
