"""The command `report`: figures, tables and a page of runs."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import tyro

from vitjax.cli.command import Command, make_folder, metavar
from vitjax.messages import check_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Draw the figures of one run or several, and a page to read.

    Example: vitjax report rows control-rows --out report

    Args:
        runs: folders that `vitjax run` wrote.
        out: folder for report.html and the figures; by default the run's own, of
            several runs ./vitjax-report.
        tests: besides tests over images, object against context tokens with tokens as
            units: permuted within images, or as vilas2023, shuffled all together, which
            also shuffles which images are right. published is the old name of
            vilas2023.
        subset: on how many images those rest.
        names: of the runs, in their order; by default what tells them apart.
    """

    runs: tyro.conf.Positional[Annotated[tuple[str, ...], metavar("DIR...")]]
    out: Annotated[str | None, metavar("DIR")] = None
    tests: Literal["images", "within_images", "vilas2023", "published"] = "images"
    subset: int = 500
    names: Annotated[tuple[str, ...], metavar("NAME...")] = ()
    needs_device: ClassVar[bool] = False

    def __call__(self) -> Any:
        from vitjax.report.page import write_report
        from vitjax.runner.results import open_results

        if not self.runs:
            raise ValueError("Give the folder of at least one run: vitjax report DIR.")
        check_range("subset", self.subset, 1)
        out = self.out or (self.runs[0] if len(self.runs) == 1 else "vitjax-report")
        make_folder(out)
        page = write_report(
            [open_results(path) for path in self.runs],
            out,
            tests=self.tests,
            subset=self.subset,
            names=self.names,
        )
        facts = {"report": str(page), "figures": f"{out}/figures"}
        self.show(facts, f"Report: {page}")
        return page
