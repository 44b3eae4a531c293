"""The unit files, as text; what they do is in tests/booted."""

from __future__ import annotations

from tools.unit_template import TEMPLATE, UNIT, UNPRIVILEGED, template_of, unprivileged_of


def test_the_template_says_the_same_as_the_unit() -> None:
    assert TEMPLATE.read_text() == template_of(UNIT.read_text()), (
        "run python -m tools.unit_template"
    )


def test_the_unprivileged_unit_differs_in_its_privileges_alone() -> None:
    text = UNPRIVILEGED.read_text()
    assert text == unprivileged_of(UNIT.read_text(), text), "run python -m tools.unit_template"


def test_nothing_of_an_instance_is_anothers() -> None:
    unit = "\n[Unit]\nDescription=nginx-supervisor\n[Service]\n"
    text = template_of(
        f"# Of both.\n{unit}StateDirectory=nginx-supervisor\n"
        "ExecStart=/x --config /etc/nginx-supervisor/nginx-supervisor.toml\n"
        "ReadWritePaths=/var/lib/nginx-supervisor /run/nginx-supervisor/x\n"
    )
    assert text.splitlines()[-3:] == [
        "StateDirectory=nginx-supervisor-%i",
        "ExecStart=/x --config /etc/nginx-supervisor/%i.toml",
        "ReadWritePaths=/var/lib/nginx-supervisor-%i /run/nginx-supervisor-%i/x",
    ]
    assert "Of both" not in text
