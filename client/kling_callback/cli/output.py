"""Where the files of `--output` go: a folder, or a file whose name has a suffix."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from kling_callback.base import BaseFile
from kling_callback.cli.usage import shell_line
from kling_callback.errors import ParameterError, ResultFailed
from kling_callback.protocol.media_types import is_device
from kling_callback.tasks import AsyncFile


@dataclass(frozen=True, slots=True)
class Destination:
    """A folder, or with `name` a file in it. `text`: as it was given."""

    text: str
    folder: Path
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> "Destination":
        """The file that `text` names if it has a suffix (`x.png`, but not `v1.2`) and is no folder, else the folder."""
        path = Path(text)
        has_suffix = any(letter.isalpha() for letter in path.suffix)
        if has_suffix and not text.endswith(("/", os.sep)) and not os.path.isdir(path):  # noqa: PTH112 # raises nothing
            return cls(text, path.parent, path.name)
        return cls(text, path)

    def target(self, file: BaseFile) -> Path:
        """The path of a file: in a folder by its own name; else `x.png`, and for the others `x-1.png`, ..."""
        if not self.name:
            return self.folder / file.name
        path = self.folder / self.name
        return path if file.index == 0 else path.with_name(f"{path.stem}-{file.index}{Path(file.name).suffix}")

    def check(self) -> None:
        """Check that the files can be written, without a trace. Raises ParameterError."""
        place = self.folder
        if sys.platform == "win32" and any(map(is_device, (*self.folder.parts, self.name))):
            raise ParameterError([f"output: {self.text!r} names a device of Windows. Name another folder or file."])
        try:
            while not place.is_dir() and place != place.parent:
                if place.exists() or place.is_symlink():
                    raise NotADirectoryError(f"{str(place)!r} is not a folder")
                place = place.parent
            with tempfile.TemporaryDirectory(prefix=".kling-", dir=place) as draft:
                folder = Path(draft) / self.folder.relative_to(place)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / (self.name or "file")).touch()
        except OSError as error:
            raise ParameterError(
                [f"output: {self.text!r} cannot be written: {error.strerror or error}. Name another folder or file."]
            ) from None
        except ValueError as error:  # a path that no file can have
            raise ParameterError([f"output: {self.text!r} is not a path: {error}."]) from None

    async def save(self, files: Sequence[AsyncFile]) -> tuple[list[Path], list[str]]:
        """Download files. Returns the paths of those that were written, and the problems of the others."""
        paths, problems = [], []
        for file in files:
            target = self.target(file)
            try:
                await to_thread.run_sync(lambda folder: folder.mkdir(parents=True, exist_ok=True), target.parent)
                paths.append(await file.save(target))
            except OSError as error:
                problems.append(f"{target} cannot be written: {error.strerror or error}.")
            except ResultFailed as error:
                problems.append(str(error))
        return paths, problems

    def again(self, task_id: str) -> str:
        """The command that downloads the files of a task again."""
        return shell_line(["kling", "wait", task_id, "--output", self.text])
