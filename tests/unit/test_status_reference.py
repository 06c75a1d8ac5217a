"""The reference of the status has all fields that the status has in JSON."""

import re
from datetime import UTC, datetime

from dispatcher.operate.status_model import GroupStatus
from tools.status_reference import PAGE, page


def test_the_page_is_made_from_the_code():
    assert PAGE.read_text() == page(), "run: python -m tools.status_reference"


def test_the_page_has_all_fields_of_the_json():
    section = page().partition("## GroupStatus\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert set(named) == set(GroupStatus("g", datetime.now(UTC), 0.0, None).as_dict())
