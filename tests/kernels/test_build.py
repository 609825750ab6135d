import subprocess
import sys

import pytest

from segbench.kernels import build, compiled


def test_without_a_compiler_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="no C compiler: cc, gcc and clang are not found; install gcc or clang"):
        build.build(tmp_path / "libsegbench.so")
    with pytest.raises(build.BuildError, match="no C compiler: icc not found"):
        build.build(tmp_path / "libsegbench.so", "icc")


def test_a_compiler_that_fails_is_quoted_and_an_earlier_library_stays(tmp_path):
    before = tmp_path / "libsegbench.so"
    before.write_bytes(b"earlier")
    with pytest.raises(build.BuildError, match=r"evaluation\.c .*failed:\nno such thing as C"):
        build.build(before, f"{sys.executable} -c 'raise SystemExit(\"no such thing as C\")'")
    assert before.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [before]


def test_the_library_knows_its_sources_and_needs_nothing_but_libc(library):
    assert compiled.load(library).target in build.TARGETS
    assert build.digest().encode() in library.read_bytes()
    if sys.platform == "linux":
        needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
        assert all(word in needed for word in ("libc",))
        assert not any(word in needed for word in ("python", "gomp", "stdc++"))


def test_the_command_names_the_library_and_refuses_words_it_does_not_know():
    done = subprocess.run(
        [sys.executable, "-m", "segbench.kernels", "no-such-compiler"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "no C compiler: no-such-compiler not found; install gcc or clang"
