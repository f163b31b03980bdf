"""The list of seeded faults stays true; `run.py` shows that they are caught."""

import pytest

from tests.faults.run import ROOT, faults

FAULTS = faults()


def test_there_are_thirty_of_them():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 30


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_applies_to_one_place(fault):
    text = (ROOT / fault.file).read_text()
    compile(fault.applied(text), fault.file, "exec")
    assert all((ROOT / name).is_file() for name in fault.tests)
