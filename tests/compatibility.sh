#!/usr/bin/env bash
# Install the package in a fresh environment, with the versions wanted, and run the tests there.
#
#   bash tests/compatibility.sh [--python 3.12] [--torch 2.4.1] [--sbi 0.27.0] [--with 'numpy<2' ...] [-- pytest arguments]
#
# What is not named is the newest that pip finds; --python may also be the path of an interpreter. The package and its tests
# are copied first, so that nothing in the working tree changes and whatever changes there meanwhile does not matter.
set -euo pipefail
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
interpreter() { # of a version, from the path or from pyenv
  local candidate
  for candidate in "$1" "python$1" "$(pyenv root 2>/dev/null)/versions/$1"*/bin/python; do
    if "$candidate" -c "" 2>/dev/null; then echo "$candidate" && return; fi
  done
  echo "no Python $1 found" >&2 && return 1
}

python=python3 wanted=()
while (($#)); do
  case $1 in
    --python) python=$(interpreter "$2"); shift 2 ;;
    --torch) wanted+=("torch==$2"); shift 2 ;;
    --sbi) wanted+=("sbi==$2"); shift 2 ;;
    --with) wanted+=("$2"); shift 2 ;;
    --) shift; break ;;
    -h | --help) usage; exit ;;
    *) usage >&2; exit 2 ;;
  esac
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir "$scratch/main"
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d "" file; do [[ ! -e $file ]] || printf "%s\0" "$file"; done |
  tar --null --files-from=- -c | tar -x -C "$scratch/main"
[[ -d ../shared ]] && ln -s "$PWD/../shared" "$scratch/shared" # recorded data, where the tests look for them

"$python" -m venv "$scratch/venv"
cd "$scratch/main"
"$scratch/venv/bin/pip" install -qq --no-cache-dir ".[test]" "${wanted[@]}"
"$scratch/venv/bin/python" - <<'END'
import platform
from importlib.metadata import version

names = ("sbi_bed", "sbi", "torch", "numpy", "scipy", "scikit-learn", "arviz")
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names), sep=", ", flush=True)
END
"$scratch/venv/bin/pytest" "$@"
