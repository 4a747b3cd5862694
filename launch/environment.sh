# shellcheck shell=bash
# Sourced by the other scripts. Makes .venv with the pinned requirements and this package;
# does nothing if they are already installed. PYTHON chooses the interpreter, and JAX_EXTRA what
# JAX needs for accelerators (tpu, cuda12 or cuda13); it is kept until another one is given.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: llc_jax needs Python 3.11 or newer; set PYTHON to one ($python is not)." >&2
  exit 2
}

JAX_EXTRA=${JAX_EXTRA-$(cat .venv/jax_extra 2>/dev/null || true)}
packages=(-r requirements.txt ${JAX_EXTRA:+"jax[$JAX_EXTRA]"})
[ "$JAX_EXTRA" != tpu ] || packages+=(gcsfs) # For runs and data at gs://.
wanted=$JAX_EXTRA$("$python" -c '
import hashlib, pathlib, sys
files = ["requirements.txt", "setup.cfg", "pyproject.toml"]
content = b"".join(pathlib.Path(name).read_bytes() for name in files)
print(sys.version, sys.executable, hashlib.sha256(content).hexdigest())')

if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  echo "Installing the requirements into .venv ..."
  if command -v uv >/dev/null; then
    uv venv --quiet --clear --seed --python "$python" .venv
    uv pip install --quiet --python .venv/bin/python "${packages[@]}"
    uv pip install --quiet --python .venv/bin/python --no-deps --editable .
  else
    "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet "${packages[@]}"
    .venv/bin/python -m pip install --quiet --no-deps --editable .
  fi
  echo "$JAX_EXTRA" >.venv/jax_extra
  echo "$wanted" >.venv/installed
fi
