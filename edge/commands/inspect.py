"""``edge inspect``: score pictures and write heat maps, by the same arithmetic as the daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edge.errors import DataError, Exit, PictureError, ResourceError


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for heat maps (PNG).")
@click.option("--roi", nargs=4, type=int, metavar="X Y W H", help="Region of interest in source pixels.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a picture and line.")
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path,
    pictures: tuple[Path, ...],
    out: Path | None,
    roi: tuple[int, int, int, int] | None,
    as_json: bool,
) -> None:
    """Score pictures (files, or folders of files) with a BUNDLE. A picture that cannot be read is said so and the
    others are still scored; the exit code is then 5."""
    from edge.bundle import load_bundle
    from edge.commands.common import engine_errors
    from edge.heads import single_thread
    from edge.heads.scorer import Scorer
    from engines import open_engine

    paths = list(_expand(pictures))
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{out}: cannot be made ({error.strerror})") from None
    loaded = load_bundle(bundle)
    single_thread()
    scorer = Scorer(loaded)
    manifest = loaded.manifest
    failed = 0
    with engine_errors():
        engine = open_engine(
            loaded.graph, precision=manifest.backbone.precision, taps=[tap.name for tap in manifest.backbone.taps]
        )
        for path in paths:
            try:
                result = _score(path, engine, scorer, (manifest.input.height, manifest.input.width), roi)
            except PictureError as error:
                failed += 1
                click.echo(f"edge: {error}", err=True)
                continue
            heat_map = _draw(out, path, manifest, *result, roi) if out is not None else None
            _tell(path, result[1], scorer, heat_map, as_json)
    if failed:
        click.echo(f"edge: {failed} of {len(paths)} pictures were not inspected", err=True)
        ctx.exit(Exit.BAD_DATA)


def _expand(pictures: tuple[Path, ...]) -> Iterator[Path]:
    from edge.pictures import is_picture

    for path in pictures:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and is_picture(p))
            if not found:
                raise DataError(f"{path}: no pictures in this folder")
            yield from found
        else:
            yield path


def _score(path: Path, engine: Any, scorer: Any, size: tuple[int, int], roi: Any) -> tuple[Any, Any]:
    from edge.pictures import read_picture
    from edge.preprocess import prepare

    picture = read_picture(path)
    taps = engine.infer(prepare(picture, size, roi)[None])
    return picture, scorer.score(taps)[0]


def _draw(out: Path, path: Path, manifest: Any, picture: Any, scored: Any, roi: Any) -> Path:
    """Write the heat map beside others of the same name under a name of its own."""
    from edge.alerts.evidence import encode_png, overlay
    from edge.alerts.regions import Geometry, find_regions

    limit = manifest.calibration.pixel_threshold
    anomalous = scored.score > manifest.calibration.threshold
    geometry = Geometry.of(picture.shape[:2], roi, scored.map.shape)
    regions = find_regions(scored.map, limit, geometry) if anomalous else ()
    drawn = overlay(
        picture,
        scored.map,
        limit,
        regions,
        roi=roi,
        title=path.name,
        detail=f"score {scored.score:.4g}, threshold {manifest.calibration.threshold:.4g}",
        alarm=anomalous,
        side_by_side=True,
    )
    parent = f"{path.parent.name}-" if path.parent.name else ""
    target = out / f"{parent}{path.stem}.png"
    try:
        target.write_bytes(encode_png(drawn))
    except OSError as error:
        target.unlink(missing_ok=True)
        raise ResourceError(f"{target}: cannot be written ({error.strerror})") from None
    return target


def _tell(path: Path, scored: Any, scorer: Any, heat_map: Path | None, as_json: bool) -> None:
    verdict = "anomalous" if scored.score > scorer.threshold else "normal"
    if as_json:
        row = {
            "picture": str(path),
            "verdict": verdict,
            "score": scored.score,
            "threshold": scorer.threshold,
            "p_value": scored.p_value,
            "parts": dict(scored.parts),
            "heat_map": str(heat_map) if heat_map else None,
        }
        click.echo(json.dumps(row, allow_nan=False))
    else:
        shown = f"  {heat_map}" if heat_map else ""
        click.echo(f"{verdict:<9}  {scored.score:8.4f}  p {scored.p_value:.2g}  {path}{shown}")
