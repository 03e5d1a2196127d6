import json
from pathlib import Path

import click

from .options import FILE, trust_option
from .program import is_quiet, one_line, print_lines


@click.command(short_help="Recognize the characters in image files.")
@click.argument("images", nargs=-1, required=True, metavar="[MODEL] IMAGES...")
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="Predictions per image of one character."
)
@click.option("--text", is_flag=True, help="Read all characters of each image: separated handwriting, line by line.")
@click.option("--boxes", type=click.IntRange(1, 1000), metavar="N", help="Read a form's row of N boxes.")
@click.option("--allow", metavar="CHARACTERS", help="Only these are possible, for example 0-9A-F.")
@click.option(
    "--pattern",
    help="What each line is: 9 for a digit, A for a letter, * for any character, and others as they are: 99-99-9999.",
)
@click.option(
    "--coverage",
    type=click.FloatRange(0.9, 0.999),
    metavar="SHARE",
    help="Instead of the --top predictions, the smallest set that holds the true one in 0.9 to 0.999 of images.",
)
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Refuse, with a question mark, what is less probable or looks like no character.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with one object per image.")
@click.option("--show", type=FILE, help="PNG file to write: each image, what the model saw of it, its predictions.")
@trust_option
def predict(
    images: tuple[str, ...],
    top: int,
    text: bool,
    boxes: int | None,
    allow: str | None,
    pattern: str | None,
    coverage: float | None,
    min_probability: float | None,
    as_json: bool,
    show: Path | None,
) -> None:
    """Recognize characters. MODEL is a run folder, an exported .onnx or hf://USER/NAME, or left out for the built-in
    model; IMAGES are files, folders or globs, one character per image, dark on light or light on dark. With --text,
    --boxes or --pattern an image has several.

    \b
    emnist-dali predict photo.jpg
    emnist-dali predict --text page.jpg
    emnist-dali predict --boxes 8 --allow 0-9 form.png
    emnist-dali predict runs/balanced-cpu-20261122-160000 photo.jpg scans/
    """
    from ..deploy.emnist_style import SEVERAL
    from ..deploy.predict import format_table, format_texts, model_and_images, predict, predict_text

    several = text or boxes is not None or pattern is not None
    of_one = {"--show": show, "--coverage": coverage, "--min-probability": min_probability}
    if several and (given := [option for option, value in of_one.items() if value is not None]):
        raise click.UsageError(f"{given[0]} is for images of one character; leave out --text, --boxes and --pattern.")
    model, pictures = model_and_images(images)
    if pictures == images and not is_quiet():
        click.echo(f"Reading with {model}, the model in the package.", err=True)
    if several:
        answers, errors = predict_text(model, pictures, allow, pattern, boxes)
    else:
        answers, errors = predict(model, pictures, top, show, allow, coverage, min_probability)
    formatted = format_texts if several else format_table
    print_lines(json.dumps(answers) if as_json else formatted(answers))
    for answer in answers:
        if warning := answer.get("warning"):
            advice = "; --text reads them all" if warning == SEVERAL else ""
            click.echo(one_line(f"{answer['path']}: {warning}{advice}."), err=True)
    for message in errors:
        click.echo(one_line(message), err=True)
    if errors:
        raise SystemExit(1)
