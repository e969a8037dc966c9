"""The worst day: a process killed while it saves, a full disk, a read-only one, two writers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kanmeta
from tests.cases import EXAMPLE, case, saved

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("KANMETA_KILLS", "8"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")


def script(name: str, folder: Path, *arguments: str, wrapper: tuple[str, ...] = ()) -> list[str]:
    command = [*wrapper, sys.executable, "-m", "tests.fault_scripts", name, str(folder)]
    return [*command, *arguments]


def run(*arguments: object, **options: object) -> str:
    command = script(*arguments, **options)  # type: ignore[arg-type]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_killed_save_leaves_the_old_or_the_new_file_and_no_litter(tmp_path: Path) -> None:
    interrupted = int(run("kill", tmp_path, str(KILLS), "0"))
    assert interrupted > KILLS // 3  # the test is about interrupted saves


@pytest.fixture
def private_mounts() -> tuple[str, ...]:
    """Command in front of one that may mount, in a namespace of its own."""
    wrapper = ("unshare", "--user", "--map-root-user", "--mount")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*wrapper, "true"], check=False).returncode
    ):
        pytest.skip("this machine lets no user mount file systems of their own")
    return wrapper


@pytest.mark.parametrize("name", ["disk_full", "read_only"])
def test_a_disk_that_takes_nothing(
    name: str, tmp_path: Path, private_mounts: tuple[str, ...]
) -> None:
    run(name, tmp_path, wrapper=private_mounts)


def test_a_limit_of_file_sizes(tmp_path: Path) -> None:
    run("file_size", tmp_path)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_loading_takes_no_second_copy_of_the_file(tmp_path: Path) -> None:
    run("low_memory", tmp_path)


def test_two_writers(tmp_path: Path) -> None:
    run("prepare", tmp_path)
    writers = [subprocess.Popen(script("write", tmp_path, value), cwd=ROOT) for value in ("1", "2")]
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coded", "plain"]


def test_what_a_killed_process_left_goes_and_what_a_living_one_uses_stays(tmp_path: Path) -> None:
    from kanmeta.atomic import replacing

    target = tmp_path / "a[1]*.safetensors"
    abandoned = tmp_path / f".{target.name}.0123abcd.partial"
    other = tmp_path / ".a1x.safetensors.0123abcd.partial"  # a pattern would take it, too
    for folder in (abandoned, other):
        folder.mkdir()
        (folder / ".tmpXYZ").touch()
    with replacing(target) as mine:
        mine.write_text("mine")
        with replacing(target) as theirs:
            theirs.write_text("theirs")
        assert target.read_text() == "theirs"
        assert not abandoned.exists()
        assert other.exists()
        assert mine.exists()
    assert target.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, target.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_devices_are_not_replaced_by_files(tmp_path: Path) -> None:
    model, _ = saved(tmp_path)
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match="/dev/full exists and is not a regular file"):
        kanmeta.save(model, link)
    with pytest.raises(OSError, match="is not a regular file"):
        kanmeta.save(model, tmp_path)
    assert Path("/dev/full").is_char_device()


def test_a_read_only_file_is_replaced_with_its_permissions(tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    path.chmod(0o444)
    kanmeta.save(model, path)
    assert path.stat().st_mode & 0o777 == 0o444
    x = case(EXAMPLE).x(dtype=torch.float32)
    same = kanmeta.load(case(EXAMPLE).model(torch.float32), path)
    assert torch.equal(same(x), model(x))
