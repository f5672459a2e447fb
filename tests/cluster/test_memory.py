"""The memory that a run may take: control groups of both versions, from folders laid out as the kernel's."""

from types import SimpleNamespace

import pytest

from cluster import memory
from cluster.memory import available, cgroup_free

GB = 10**9


@pytest.fixture
def lay(tmp_path):
    """Write membership lines and group files; returns the two arguments."""

    def write(membership, **files):
        (tmp_path / "cgroup").write_text("".join(f"{line}\n" for line in membership), encoding="ascii")
        for name, text in files.items():
            file = tmp_path / "fs" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n", encoding="ascii")
        return tmp_path / "cgroup", tmp_path / "fs"

    return write


def two(folder, limit, used, inactive=0):
    stat = f"anon 1\ninactive_file {inactive}\nactive_file 7"
    return {f"{folder}memory.max": limit, f"{folder}memory.current": used, f"{folder}memory.stat": stat}


def one(folder, limit, used, inactive=0):
    stat = f"inactive_file 1\ntotal_inactive_file {inactive}"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    return dict(zip((f"memory/{folder}{n}" for n in names), (limit, used, stat), strict=True))


def test_version_2_counts_idle_file_pages_as_free(lay):
    assert cgroup_free(*lay(["0::/job"], **two("job/", 8 * GB, 6 * GB, inactive=3 * GB))) == 5 * GB


def test_version_1(lay):
    lines = ["9:cpu,cpuacct:/job", "4:hugetlb,memory:/job", "0::/"]
    assert cgroup_free(*lay(lines, **one("job/", 8 * GB, 6 * GB, inactive=GB))) == 3 * GB


def test_the_tightest_group_above_binds(lay):
    files = {**two("a/b/", "max", GB), **two("a/", 4 * GB, 3 * GB), **two("", 64 * GB, 9 * GB)}
    assert cgroup_free(*lay(["0::/a/b"], **files)) == GB


@pytest.mark.parametrize("path", ["/docker/0123", "/../../host"])
def test_a_path_of_the_host_leads_to_the_top_of_the_mount(lay, path):
    assert cgroup_free(*lay([f"0::{path}"], **two("", 2 * GB, GB))) == GB
    assert cgroup_free(*lay([f"4:memory:{path}"], **one("", 3 * GB, GB))) == 2 * GB


def test_a_group_over_its_limit_has_nothing_left(lay):
    assert cgroup_free(*lay(["0::/"], **two("", GB, 2 * GB))) == 0


def test_no_limit_at_all(lay, tmp_path):
    assert cgroup_free(tmp_path / "none", tmp_path / "none") is None
    assert cgroup_free(*lay(["0::/"], **two("", "max", GB))) is None


def test_the_smaller_of_machine_and_group(lay, monkeypatch):
    where = lay(["0::/"], **two("", 8 * GB, 2 * GB))
    for machine, expected in ((20 * GB, (6 * GB, True)), (3 * GB, (3 * GB, False))):
        monkeypatch.setattr(memory.psutil, "virtual_memory", lambda m=machine: SimpleNamespace(available=m))
        assert available(*where) == expected
