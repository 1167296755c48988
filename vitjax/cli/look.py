"""The command `look`: from photos to the token explorer."""

import dataclasses
import hashlib
import pathlib
import webbrowser
from typing import Annotated, Any, Literal

import tyro

from vitjax.cli.command import ModelCommand, make_folder, metavar
from vitjax.data.image_files import ImageFiles, digest_rows, find_images
from vitjax.data.labels import match_label
from vitjax.data.records import SourceError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look(ModelCommand):
    """Explore photos token by token: a page that shows what every token of them says.

    It shows each token's classes, attention and relevancy, block by block. Photos need
    no labels: without --class, the class is the model's own prediction.

    Example: vitjax look cat.png dog.png --model vit_ti16 --open

    Args:
        images: image files, or folders of them.
        class_: id, name or number of the class whose rank and relevancy is shown; by
            default the class that the model predicts for each photo.
        out: folder for report.html and the rows that it shows.
        open: show the page in a browser.
        dtype: what the model computes in.
    """

    images: tyro.conf.Positional[Annotated[tuple[str, ...], metavar("PHOTO...")]]
    class_: Annotated[str | None, tyro.conf.arg(name="class", metavar="NAME|ID")] = None
    out: Annotated[pathlib.Path, metavar("DIR")] = pathlib.Path("vitjax-look")
    open: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __call__(self) -> Any:
        """The path of the page."""
        from vitjax.report.page import write_report
        from vitjax.runner.loop import run

        make_folder(self.out)
        model, label = self.load(), None
        if self.class_ is not None:
            label = str(match_label(self.class_, model.classes, model.class_ids))
        photos = open_photos(self.images, label)
        # Other photos or flags are another run, beside this one.
        digest = hashlib.sha256(f"{self} {photos.id}".encode()).hexdigest()
        rows = self.out / f"rows-{digest[:8]}"
        results = run("tokens", model, photos, rows, dtype=self.dtype)
        page = pathlib.Path(write_report([results], self.out)).resolve()
        answers = [model.classes[c] for c in results["prediction"].values]
        pictures = [{"name": n, "answer": a} for n, a in zip(photos.names, answers)]
        lines = [f"{name}: {answer}" for name, answer in zip(photos.names, answers)]
        facts = {"report": str(page), "rows": str(rows), "pictures": pictures}
        self.show(facts, "\n".join([*lines, f"Explorer: {page}"]))
        if self.open:
            webbrowser.open(page.as_uri())
        return page


def open_photos(paths: tuple[str, ...], label: str | None) -> ImageFiles:
    """Image files, and those in folders, as a data set whose images have one label."""
    files: list[str] = []
    for path in paths:
        folder = pathlib.Path(path)
        inside = find_images(folder)[0] if folder.is_dir() else None
        files += [path] if inside is None else [str(folder / name) for name in inside]
    if not files:
        raise SourceError("Give at least one image file, or a folder of them.")
    labels = (label,) * len(files)
    photos = ImageFiles("", pathlib.Path(), tuple(files), labels)
    digest = digest_rows(
        (name, photos.digest(index), label) for index, name in enumerate(files)
    )
    id = f"photos:{len(files)} files,{digest}"
    return dataclasses.replace(photos, id=id)
