"""Real nginx builds, and everything that is none."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest
import trio

from supervisor.core.errors import Refusal
from supervisor.core.nginx_version import NginxBuild
from supervisor.edges import nginx_binary
from supervisor.edges.nginx_binary import (
    dump_config,
    inspect_binary,
    rejection,
    upgrade_environment,
    version_of,
)
from tools.nginx_builds import Build, builds

# Through the module, as pytest would take a name `test_...` for a test.
check_config = nginx_binary.test_config


@pytest.fixture(params=builds(), ids=str)
def build(request: pytest.FixtureRequest) -> Build:
    found = request.param
    assert isinstance(found, Build)
    return found


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def configured(prefix: Path, text: str) -> tuple[str, ...]:
    config = prefix / "nginx.conf"
    config.write_text(f"pid {prefix}/nginx.pid;\nerror_log {prefix}/error.log;\n{text}\n")
    return ("-p", str(prefix), "-c", str(config))


def reason_of(path: Path) -> str:
    with pytest.raises(Refusal) as caught:
        inspect_binary(path)
    assert str(path) in caught.value.detail
    return caught.value.reason


async def test_version(build: Build) -> None:
    inspect_binary(build.path)
    said = await version_of(build.path, {})
    assert said.version == build.version
    assert said.flavour == "nginx"


async def test_a_configuration_is_tested_and_read(build: Build, prefix: Path) -> None:
    argv = configured(
        prefix,
        "worker_processes 2; events {} http { include *.inc; server { listen 127.0.0.1:18999; } }",
    )
    (prefix / "a.inc").write_text(f"server {{ listen unix:{prefix}/s.sock; }}")
    result = await check_config(build.path, argv, {})
    assert result.ok
    assert "test is successful" in result.output
    config, text = await dump_config(build.path, argv, {})
    assert config.problems == ()
    assert config.worker_processes == 2
    assert [str(listen) for listen in config.listens] == [
        f"unix:{prefix}/s.sock",
        "127.0.0.1:18999",
    ]
    assert config.files == (str(prefix / "nginx.conf"), str(prefix / "a.inc"))
    assert "# configuration file" in text


async def test_a_bad_configuration_is_told_in_nginx_s_words(build: Build, prefix: Path) -> None:
    argv = configured(prefix, "events {} http { server { listen nonsense:x; } }")
    result = await check_config(build.path, argv, {})
    assert not result.ok
    with pytest.raises(Refusal, match=r"\[emerg\].*nonsense") as caught:
        await dump_config(build.path, argv, {})
    assert caught.value.reason == "config_rejected"


@pytest.mark.needs("marker")
async def test_a_module_of_another_version(prefix: Path) -> None:
    old, *_, new = builds()
    argv = configured(prefix, f"load_module {new.marker_module}; events {{}}")
    config, _ = await dump_config(new.path, argv, {})
    assert config.load_modules == (str(new.marker_module),)
    with pytest.raises(Refusal, match="instead of") as caught:
        await dump_config(old.path, argv, {})
    assert caught.value.reason == "module_mismatch"
    argv = configured(prefix, "load_module /nowhere.so; events {}")
    with pytest.raises(Refusal, match="dlopen") as caught:
        await dump_config(old.path, argv, {})
    assert caught.value.reason == "module_mismatch"


def built_with(*arguments: str) -> NginxBuild:
    return NginxBuild("1.2.3", "nginx", arguments, "/p")


@pytest.mark.parametrize(
    ("line", "candidate", "running", "reason"),
    [
        (
            'nginx: [emerg] unknown directive "stub_status" in /c:1',
            built_with(),
            None,
            "module_missing",
        ),
        (
            'nginx: [emerg] unknown directive "stub_status" in /c:1',
            built_with("--with-http_stub_status_module"),
            None,
            "config_rejected",
        ),
        (
            'nginx: [emerg] unknown directive "stream" in /c:1',
            built_with("--with-stream=dynamic"),
            None,
            "config_rejected",
        ),
        (
            'nginx: [emerg] unknown directive "brotli" in /c:1',
            built_with(),
            built_with("--add-module=brotli"),
            "module_missing",
        ),
        (
            'nginx: [emerg] unknown directive "server_nam" in /c:1',
            built_with(),
            built_with("--with-http_v3_module", "--with-compat"),
            "config_rejected",
        ),
        ('nginx: [emerg] unknown directive "brotli"', built_with(), None, "config_rejected"),
        (
            'nginx: [emerg] unknown directive "brotli"',
            built_with(),
            built_with(),
            "config_rejected",
        ),
        ('nginx: [emerg] unknown directive "stub_status"', None, None, "config_rejected"),
        ('nginx: [emerg] module "/m" is not binary compatible', None, None, "module_mismatch"),
        ('nginx: invalid option: "e"', None, None, "config_rejected"),
        ("odd words", None, None, "config_rejected"),
    ],
)
def test_rejections(
    line: str, candidate: NginxBuild | None, running: NginxBuild | None, reason: str
) -> None:
    said = f"nginx: [warn] something\n{line}\nnginx: configuration file test failed\n"
    refusal = rejection(Path("/n"), said, candidate=candidate, running=running)
    assert refusal.reason == reason
    assert line in refusal.detail


@pytest.mark.parametrize(
    ("directive", "told"),
    [
        ("scgi_pass", "built with --without-http_scgi_module,"),
        ("allow", "built with --without-http_access_module,"),
        ("brotli", "built without --add-module=brotli (directive brotli),"),
    ],
)
def test_a_module_that_was_left_out(directive: str, told: str) -> None:
    """Only the directive's own is named, and what the option did."""
    left_out = ("--without-http_browser_module", "--without-http_scgi_module",
                "--without-http_access_module")  # fmt: skip
    line = f'nginx: [emerg] unknown directive "{directive}" in /c:1'
    refusal = rejection(
        Path("/n"), line, candidate=built_with(*left_out),
        running=built_with("--add-module=brotli"),
    )  # fmt: skip
    assert refusal.reason == "module_missing"
    assert told.removesuffix(",") in refusal.detail.partition(", and the configuration")[0]
    assert refusal.detail.count("--without-") == told.count("--without-")


def test_a_folder_that_the_sandbox_keeps_read_only() -> None:
    line = 'nginx: [emerg] open() "/web/log" failed (30: Read-only file system)'
    refusal = rejection(Path("/n"), line)
    assert refusal.reason == "config_rejected"
    assert "ReadWritePaths= of the supervisor's unit" in refusal.detail


@pytest.mark.parametrize("name", ["nginx", "angie"])
@pytest.mark.parametrize("with_time", [False, True])
def test_an_alert_about_its_log_hides_no_cause(name: str, *, with_time: bool) -> None:
    """As of an unprivileged nginx, whose compiled-in error log is root's."""
    cause = 'module "/m.so" version 1026003 instead of 1018000 in /c:1'
    line = f"{name}: [emerg] {cause}"
    if with_time:
        line = f"2026/11/24 07:45:46 [emerg] 15045#15045: {cause}"
    alert = f'{name}: [alert] could not open error log file: open() "/log" failed (13: so)'
    refusal = rejection(Path("/n"), f"{alert}\n{line}\n{name}: test failed\n")
    assert refusal.reason == "module_mismatch"
    assert f": nginx: [emerg] {cause};" in refusal.detail
    assert "[alert]" in rejection(Path("/n"), alert.replace(name, "nginx")).detail


async def test_only_the_given_environment_and_descriptors(tmp_path: Path) -> None:
    script = tmp_path / "show"
    script.write_text(
        "#!/bin/sh\necho nginx version: nginx/1.2.3 >&2\n"
        "echo configure arguments: --env=$(tr '\\0' , </proc/self/environ)"
        " --fds=$(echo /proc/$$/fd/*) --cwd=$(pwd) >&2\n"
    )
    script.chmod(0o755)
    os.environ["SUPERVISOR_SECRET"] = "x"
    try:
        build = await version_of(script, {"TZ": "UTC"})
    finally:
        del os.environ["SUPERVISOR_SECRET"]
    arguments = dict(
        argument.removeprefix("--").split("=", 1)
        for argument in build.configure_arguments
        if argument.startswith("--")
    )
    shown = {item.split("=", 1)[0] for item in arguments["env"].split(",") if item}
    assert shown <= {"TZ", "PWD", "OLDPWD", "SHLVL", "_"}
    numbers = [word.rsplit("/", 1)[1] for word in build.configure_arguments if "/fd/" in word]
    assert {0, 1, 2} <= {int(number) for number in numbers}
    assert max(int(number) for number in numbers) <= 10  # 10 is where sh reads its script from
    assert arguments["cwd"] == "/"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exit 0", "binary_not_nginx"),
        (
            "echo nginx version: nginx/1.2 >&2; echo configure arguments: >&2; exit 3",
            "binary_not_nginx",
        ),
        ("kill -SEGV $$", "binary_cannot_run"),
        ("echo error while loading shared libraries: libx >&2; exit 127", "binary_cannot_run"),
        ("head -c 3000000 /dev/zero; exit 1", "binary_not_nginx"),
    ],
)
async def test_what_is_not_nginx(tmp_path: Path, body: str, reason: str) -> None:
    script = tmp_path / "fake"
    script.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
    script.chmod(0o755)
    with pytest.raises(Refusal) as caught:
        await version_of(script, {})
    assert caught.value.reason == reason
    assert len(caught.value.detail) < 2000


async def test_what_cannot_be_started(tmp_path: Path) -> None:
    wrong_loader = tmp_path / "loader"
    wrong_loader.write_text("#!/nowhere/sh\n")
    garbage = tmp_path / "garbage"
    garbage.write_bytes(bytes(100))
    plain = tmp_path / "plain"
    plain.write_text("x")
    for path in (wrong_loader, garbage):
        path.chmod(0o755)
    for path, reason in [
        (wrong_loader, "binary_cannot_run"),
        (garbage, "binary_not_nginx"),
        (plain, "binary_not_executable"),
        (tmp_path / "missing", "binary_missing"),
        (plain / "x", "binary_cannot_run"),
    ]:
        with pytest.raises(Refusal) as caught:
            await version_of(path, {})
        assert caught.value.reason == reason, path


HANGS = "#!/bin/sh\necho $$ > {folder}/pid\nexec /bin/sleep 600\n"


async def hanging(folder: Path) -> Path:
    script = folder / "hangs"
    script.write_text(HANGS.format(folder=folder))
    script.chmod(0o755)
    return script


def assert_ended(folder: Path) -> None:
    pid = int((folder / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_binary_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nginx_binary, "VERSION_LIMIT", 2.0)
    monkeypatch.setattr(nginx_binary, "CONFIG_TEST_LIMIT", 2.0)
    script = await hanging(tmp_path)
    with pytest.raises(Refusal) as caught:
        await version_of(script, {})
    assert caught.value.reason == "binary_not_nginx"
    assert_ended(tmp_path)
    for ask in (check_config, dump_config):
        with pytest.raises(Refusal) as caught:
            await ask(script, (), {})
        assert caught.value.reason == "config_test_timeout"
        assert_ended(tmp_path)


async def test_cancelling_ends_the_process(tmp_path: Path) -> None:
    script = await hanging(tmp_path)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(version_of, script, {})
            while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()):
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    assert_ended(tmp_path)


def test_inspection(tmp_path: Path, build: Build) -> None:
    copy = tmp_path / "nginx"
    shutil.copy(build.path, copy)
    inspect_binary(copy)
    (tmp_path / "link").symlink_to(copy)
    inspect_binary(tmp_path / "link")
    copy.chmod(0o644)
    assert reason_of(copy) == "binary_not_executable"
    copy.chmod(0o755)
    content = copy.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 100, 10):
        copy.write_bytes(content[:size])
        assert reason_of(copy) == "binary_truncated", size
    copy.write_bytes(content[:18] + struct.pack("<H", 0x1234) + content[20:])
    assert reason_of(copy) == "binary_wrong_architecture"


def test_inspection_of_other_things(tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text("#!/bin/sh\nexec nginx\n")
    text = tmp_path / "text"
    text.write_text("x")
    os.mkfifo(tmp_path / "fifo")
    for path in (wrapper, text, tmp_path, tmp_path / "fifo"):
        assert reason_of(path) == "binary_not_nginx", path
    assert reason_of(tmp_path / "missing") == "binary_missing"
    assert reason_of(tmp_path / ("x" * 300)) == "binary_unreadable"
    assert reason_of(Path("nginx")) == "relative_path"


def test_the_environment_of_an_upgrade() -> None:
    settings = {"TZ": "UTC", "A": "1", "SECRET": "s", "D": "4"}
    assert upgrade_environment((), settings) == {"TZ": "UTC"}
    assert upgrade_environment(("A", "B=2", "C", "D=5", "TZ=CET"), settings) == {
        "A": "1",
        "B": "2",
        "D": "5",
        "TZ": "CET",
    }
    assert upgrade_environment(("A",), {}) == {}
