# Sourced by the other scripts. Makes .venv with the pinned requirements and this package;
# does nothing if they are already installed. PYTHON chooses the interpreter.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: llc_jax needs Python 3.11 or newer; set PYTHON to one ($python is not)." >&2
  exit 2
}

wanted=$("$python" -c '
import hashlib, pathlib, sys
files = ["requirements.txt", "setup.cfg", "pyproject.toml"]
content = b"".join(pathlib.Path(name).read_bytes() for name in files)
print(sys.version, sys.executable, hashlib.sha256(content).hexdigest())')

if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  echo "Installing the requirements into .venv ..."
  if command -v uv >/dev/null; then
    uv venv --quiet --clear --python "$python" .venv
    uv pip install --quiet --python .venv/bin/python -r requirements.txt
    uv pip install --quiet --python .venv/bin/python --no-deps --editable .
  else
    "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet -r requirements.txt
    .venv/bin/python -m pip install --quiet --no-deps --editable .
  fi
  echo "$wanted" >.venv/installed
fi
