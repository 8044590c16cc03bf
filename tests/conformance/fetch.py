# SPDX-License-Identifier: Apache-2.0
"""Downloads transformers' own tests of the installed version: `python tests/conformance/fetch.py FOLDER`.

They are in its source distribution, which pip downloads from the index that it is set up for. Prints the folder, for
`VLMAMBA_TRANSFORMERS_TESTS`.
"""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory


def fetch(folder: Path) -> None:
    """Put the tests of the installed transformers into `folder/tests`, unless they are there."""
    release = version("transformers")
    stamp = folder / "VERSION"
    if stamp.is_file() and stamp.read_text() == release:
        return
    with TemporaryDirectory() as place:
        options = ["--quiet", "--no-deps", "--no-binary", "transformers", "--dest", place]
        command = [sys.executable, "-m", "pip", "download", *options, f"transformers=={release}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (archive,) = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as file:
            for member in file:
                inside = Path(member.name).relative_to(Path(member.name).parts[0])
                if member.isfile() and inside.parts[0] == "tests":
                    file.extract(member.replace(name=str(inside)), folder, filter="data")
    stamp.write_text(release)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/conformance/fetch.py FOLDER")
    target = Path(sys.argv[1]).resolve()
    fetch(target)
    print(target)
