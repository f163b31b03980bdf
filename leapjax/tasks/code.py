"""From an answer to the Python code that it means.

The rule is EvalPlus's (arXiv 2305.01210), which the papers' post-processing uses: the
longest run of lines that parses, and of it the imports and the definitions that a
function needs. EvalPlus reads syntax with tree-sitter, this with Python's own `ast`.
"""

import ast
import warnings

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def _parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in an answer are its own affair
            return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def longest_code(text: str) -> str:
    """The run of at least two lines that parses and has the most lines that aren't blank.

    It is the first such run; the first line if there is none.
    """
    lines = text.split("\n")
    filled = [0]
    for line in lines:
        filled.append(filled[-1] + bool(line.strip()))
    best, span = 0, (0, 1)
    for start in range(len(lines)):
        for end in range(len(lines), start + 1, -1):
            count = filled[end] - filled[start]
            if count <= best:
                break  # a shorter run from here has no more
            if _parsed("\n".join(lines[start:end])) is not None:
                best, span = count, (start, end)
    return "\n".join(lines[span[0] : span[1]])


def _name(node: ast.stmt) -> str | None:
    """What a top-level statement defines; a function only if something in it returns."""
    if isinstance(node, ast.ClassDef):
        return None if node.decorator_list else node.name
    if isinstance(node, _Function):
        returns = any(isinstance(n, ast.Return) for n in ast.walk(node))
        return node.name if returns and not node.decorator_list else None
    target = None
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    elif isinstance(node, ast.AnnAssign):
        target = node.target
    return target.id if isinstance(target, ast.Name) else None


def _names(node: ast.AST) -> set[str]:
    out = set()
    for n in ast.walk(node):
        for field in ("id", "attr", "name", "arg"):
            if isinstance(value := getattr(n, field, None), str):
                out.add(value)
    return out


def sanitise(text: str, entry_point: str) -> str:
    """The imports and definitions that a function needs.

    A name defined twice keeps its first definition that counts; a stub that returns nothing does
    not count, which is how a prompt's signature gives way to the answer's own function. Imports
    come first, then definitions in their order. Without the function, the code holds the imports
    only, and fails its test.
    """
    code = longest_code(text)
    tree = _parsed(code)
    body = tree.body if tree else []
    imports = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))]
    found: dict[str, ast.stmt] = {}
    for node in body:
        if (name := _name(node)) is not None:
            found.setdefault(name, node)
    needed, ahead = set(), [entry_point]
    while ahead:
        name = ahead.pop()
        if name in found and name not in needed:
            needed.add(name)
            ahead += _names(found[name])
    kept = [*imports, *(n for name, n in found.items() if name in needed)]
    return "\n".join(ast.get_source_segment(code, n) or "" for n in kept)
