from __future__ import annotations

import os
from pathlib import Path

from supervisor.edges.env_directives import env_directives, module_directives


def test_in_the_order_of_nginx(tmp_path: Path) -> None:
    """Included files stand where their `include` does, by pattern and sorted; links as well."""
    enabled, available = tmp_path / "enabled", tmp_path / "available"
    enabled.mkdir()
    available.mkdir()
    (available / "two").write_text("env TWO=2;\n")
    (enabled / "b.conf").symlink_to(available / "two")
    (enabled / "a.conf").write_text("env ONE; include nested.conf;")
    (tmp_path / "nested.conf").write_text("env NESTED;  # relative to the first file, not to this")
    (tmp_path / "absolute.conf").write_text('env "QUOTED=a b";')
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"""
        env FIRST;
        include enabled/*.conf;
        # env COMMENTED;
        include {tmp_path}/absolute.conf;
        http {{ include http.conf; env NOT_HERE; }}
        env LAST=;
        """
    )
    (tmp_path / "http.conf").write_text("env NOT_THERE;")
    found = env_directives(config)
    assert found == ("FIRST", "ONE", "NESTED", "TWO=2", "QUOTED=a b", "LAST=")


def test_the_modules(tmp_path: Path) -> None:
    """As written; only where nginx takes them, in the main context."""
    (tmp_path / "enabled").mkdir()
    (tmp_path / "enabled" / "a.conf").write_text("load_module modules/a.so; env A;")
    config = tmp_path / "nginx.conf"
    config.write_text(
        """
        load_module "/opt/with a space.so";
        include enabled/*.conf;
        # load_module commented.so;
        load_module one.so two.so;
        http { load_module inside.so; }
        """
    )
    assert module_directives(config) == ("/opt/with a space.so", "modules/a.so")
    assert env_directives(config) == ("A",)


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    config = tmp_path / "nginx.conf"
    assert env_directives(config) == ()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    config.write_text("include none.conf; include fifo; include loop; env A B; env; env GOOD; }")
    assert env_directives(config) == ("GOOD",)


def test_files_that_include_one_another(tmp_path: Path) -> None:
    for name in "abcdefghijklmnopqrstuvwxyz":
        (tmp_path / f"{name}.conf").write_text(f"include *.conf;\nenv {name};")
    found = env_directives(tmp_path / "a.conf")
    assert sorted(found) == list("abcdefghijklmnopqrstuvwxyz")
