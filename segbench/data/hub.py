"""Copies of published data sets on the Hugging Face hub: Parquet files with a column of images and one of masks.

They are read as files are: the bytes of every picture and mask as they were stored, decoded and checked by
`segbench.images`, treated by the same `Labels`. Nothing is fetched (`hf download` does that), no code of a repository
is run. Rows are mapped from the disk, not held in memory: `datasets` makes its own uncompressed file of them, once.
Which copies are known, with the commit, the columns and what their masks hold, is in published/NAME.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbench.data import checksums, native
from segbench.data.facts import Published
from segbench.errors import DataError, MissingInput
from segbench.images import File, Labels, decode_pair
from segbench.records import digest
from segbench.specs import Split
from segbench.types import Dataset, Sample

if TYPE_CHECKING:
    import datasets

HUB_VERSION = 1  # part of every manifest: any change to what is read from the same rows raises it


@dataclass(frozen=True)
class Copy:
    """Where a copy keeps what."""

    repository: str
    revision: str
    files: Mapping[Split, str]  # pattern of the Parquet files of a split, from the repository's root
    image: str
    mask: str
    name: str | None  # the column of names; rows have their numbers where there is none

    @property
    def command(self) -> str:
        """What fetches it."""
        parts = "".join(f' --include "{pattern}"' for pattern in self.files.values())
        return f"hf download --repo-type dataset {self.repository} --revision {self.revision}{parts}"


def split(
    params: native.Params,
    labels: Labels,
    wanted: Split,
    published: int,
    subsets: Mapping[str, tuple[int, ...]] | None = None,
    classes: Sequence[str] | None = None,
) -> "Rows":
    """One split of the copy that the params name.

    MissingInput, with the command that fetches it, if it is not in the cache; DataError if it is not what it is known
    to be: other columns, other rows, no image bytes.
    """
    assert params.hub is not None
    known = params.known if classes is None else replace(params.known, classes=tuple(classes))
    facts = known.facts["hub"][params.hub]
    copy = Copy(
        params.hub, params.revision or facts["revision"], facts["files"], facts["image"], facts["mask"], facts["name"]
    )
    if facts["labels"] == "reduced":  # the official treatment was done by who made the copy
        labels = Labels.plain(labels.classes)
    folder = _cached(copy)
    files = sorted(folder.glob(copy.files[wanted]))
    if not files:
        script = ", only a loading script, which is not run" if any(folder.glob("*.py")) else ""
        raise MissingInput(f"{copy.repository}: no {copy.files[wanted]} is in the cache{script}; first: {copy.command}")
    rows = _rows(copy, files)
    where = f"{copy.repository}@{copy.revision[:7]}"
    native.complete(known, where, len(rows), wanted, published, params.partial, copy.command)
    one = Rows(known, labels, copy, wanted, folder, files, rows, subsets or {})
    if len(one) < published:
        one.published = published
    return one


class Rows(Dataset):
    """One split in rows. Decodes nothing before it is asked for a sample or its manifest."""

    def __init__(
        self,
        known: Published,
        labels: Labels,
        copy: Copy,
        split: Split,
        folder: Path,
        files: Sequence[Path],
        rows: "datasets.Dataset",
        subsets: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.known, self.labels, self.copy, self.split = known, labels, copy, split
        self.classes, self.subsets = known.classes, subsets
        self._folder, self._files, self._rows = folder, tuple(files), rows

    @cached_property
    def manifest(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # reads every byte, once
        copy, sums = self.copy, checksums.of(self._folder, self._files)
        masks = [self._file(index, copy.mask) for index in native.evenly(range(len(self)))]
        native.refuse_treated(self.known, self.labels, masks, copy.repository)
        what = {
            "hub": HUB_VERSION,
            "set": self.known.name,
            "classes": self.classes,
            "repository": copy.repository,
            "revision": copy.revision,
            "split": self.split,
            "columns": [copy.image, copy.mask, copy.name],
            "files": [[path.name, sums[path]] for path in self._files],
        }
        return digest(what)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        name = f"{self.split}-{index:06d}" if self.copy.name is None else str(self._rows[index][self.copy.name])
        image, mask = self._file(index, self.copy.image), self._file(index, self.copy.mask)
        return decode_pair(name, image, mask, self.labels, "as stored")

    def _file(self, index: int, column: str) -> File:
        where = f"{self.copy.repository}, row {index} of {self.split}, {column}"
        picture = self._rows[index][column]
        if picture is None or not picture["bytes"]:
            raise DataError(f"{where}: holds no bytes of a picture")
        return File(where, picture["bytes"])


def _cached(copy: Copy) -> Path:
    """The copy's folder in the local cache; nothing is fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(copy.repository, repo_type="dataset", revision=copy.revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise MissingInput(f"{copy.repository} is not in the Hugging Face cache; first: {copy.command}") from error
    return Path(found)


def _rows(copy: Copy, files: Sequence[Path]) -> "datasets.Dataset":
    """The rows of Parquet files, pictures as bytes; DataError where they cannot be read so."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    try:
        rows = datasets.load_dataset("parquet", data_files=[str(path) for path in files], split="train")
    except (DatasetGenerationError, OSError, ValueError) as error:
        raise DataError(f"{files[0]}: cannot be read as Parquet ({error.__cause__ or error})") from error
    assert isinstance(rows, datasets.Dataset)
    columns = [column for column in (copy.image, copy.mask, copy.name) if column is not None]
    if missing := [column for column in columns if column not in rows.features]:
        there = ", ".join(rows.features)
        raise DataError(f"{copy.repository}@{copy.revision[:7]}: no column {missing[0]!r}, only {there}")
    for column in (copy.image, copy.mask):
        if not _holds_pictures(rows.features[column]):
            raise DataError(
                f"{copy.repository}@{copy.revision[:7]}: the column {column!r} holds {rows.features[column]}; expected"
                " pictures as bytes"
            )
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows.select_columns(columns)


def _holds_pictures(feature: Any) -> bool:
    """Whether a column is one of pictures, also where the file does not say so but has their two fields."""
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
