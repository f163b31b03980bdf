"""Options of the measurements in this folder: for developers, who quote them in the docs."""

from leapjax.cli.common import at_least, numbers, place


def add_options(parser):
    """Declare the options, as `leapjax.benchmarks.report.Report` reads them."""
    add = parser.add_argument
    add("--batches", type=numbers, metavar="N,…", help="rows")
    add("--repeats", type=at_least(1), default=5, metavar="N", help="rounds (5)")
    add("--json", type=place, metavar="FILE", help="write everything as JSON too")
    add("--write", type=place, metavar="FILE", help="put the tables at a Markdown file's markers")
    add("--quick", action="store_true", help="a minute or less, numbers without meaning")
