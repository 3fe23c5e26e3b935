"""The installed autoresearch-jax as a wheel: a workspace that has it needs no checkout."""

import base64
import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

from autoresearch_jax.common.errors import UserError

NAME = "autoresearch-jax"
BUILT = ("METADATA", "WHEEL", "entry_points.txt")  # the installer adds others to the metadata


def write(folder: Path) -> Path:
    """Write the wheel into a folder, the same bytes each time, and return its path.

    Raises UserError if the installation is not complete.
    """
    installed = importlib.metadata.distribution(NAME)
    package = NAME.replace("-", "_")
    stem = f"{package}-{installed.version}"
    info, lines = f"{stem}.dist-info", []
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(installed.files or ()):
            inside = file.parts[1:]
            if file.parts[0] == info:
                wanted = inside[0] in (*BUILT, "licenses")
            else:
                wanted = file.parts[0] == package and file.suffix != ".pyc"
            if not wanted:
                continue
            try:
                content = Path(str(file.locate())).read_bytes()
            except OSError as error:
                raise UserError(
                    f"{NAME} is not completely installed: {error}. Install it again."
                ) from error
            archive.writestr(zipfile.ZipInfo(file.as_posix()), content, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            lines.append(f"{file.as_posix()},sha256={digest.decode()},{len(content)}")
        record = f"{info}/RECORD"
        archive.writestr(zipfile.ZipInfo(record), "\n".join([*lines, f"{record},,", ""]))
    return wheel
