"""`dinoprobe train`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console

if TYPE_CHECKING:
    from dinoprobe.train import TrainConfig, TrainedRun

_HEAD = "Head"


def train(
    context: typer.Context,
    data: Annotated[
        str | None, typer.Argument(help="Folder, table, archive, or URI with labelled images.")
    ] = None,
    *,
    encoder: options.EncoderName = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_HEAD,
            help="auto (default), tutorial, dinov3-linear, dinov2-linear, dinov3-logreg, "
            "dinov3-knn, fewshot-ridge or fewshot-k.",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="One head in place of a protocol: logistic, lda, ridge, prototype, linear, "
            "linear-grid, knn, or sklearn:<import path>.",
            rich_help_panel=_HEAD,
        ),
    ] = None,
    head_option: Annotated[
        list[str] | None,
        typer.Option(
            "--head-option",
            "-O",
            metavar="NAME=VALUE",
            rich_help_panel=_HEAD,
            help="Any option of the head, such as C=0.1; repeatable.",
        ),
    ] = None,
    class_weight: Annotated[
        str | None,
        typer.Option(
            metavar="balanced|LABEL=WEIGHT,...",
            rich_help_panel=_HEAD,
            help="How much a row of each class counts in the fit.",
        ),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="uniform|LABEL=SHARE,...",
            rich_help_panel=_HEAD,
            help="Class frequencies that probabilities are for (default: those of training).",
        ),
    ] = None,
    select: Annotated[
        str,
        typer.Option(
            help="Strength: best, or one-se (the most regularised within a standard error).",
            rich_help_panel=_HEAD,
        ),
    ] = "best",
    optimizer: Annotated[
        str | None, typer.Option(help="linear: adam, adamw or sgd.", rich_help_panel=_HEAD)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="linear: learning rate.", rich_help_panel=_HEAD)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="linear: epochs.", rich_help_panel=_HEAD)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, help="linear: weight decay.", rich_help_panel=_HEAD)
    ] = None,
    on_the_fly: Annotated[
        bool,
        typer.Option(
            "--on-the-fly",
            rich_help_panel=_HEAD,
            help="linear: encoder inside the loop, on images cropped and flipped at random.",
        ),
    ] = False,
    augment: Annotated[
        str | None,
        typer.Option(
            help="On the fly: crop+flip (default), imagenet, crop, flip or none.",
            rich_help_panel=_HEAD,
        ),
    ] = None,
    calibrate: Annotated[
        str,
        typer.Option(
            rich_help_panel=_HEAD,
            help="Probabilities: temperature, vector (a factor and a bias for each class) or none; "
            "auto: temperature for protocols auto and fewshot-k, and for logistic.",
        ),
    ] = "auto",
    sets: Annotated[
        str,
        typer.Option(help="Prediction sets: lac (smallest), aps or none.", rich_help_panel=_HEAD),
    ] = "lac",
    coverage: Annotated[
        float,
        typer.Option(
            help="Share of images whose label the prediction set holds.", rich_help_panel=_HEAD
        ),
    ] = 0.9,
    sets_per_class: Annotated[
        bool,
        typer.Option(
            "--sets-per-class",
            help="Reach it in each class, by larger sets.",
            rich_help_panel=_HEAD,
        ),
    ] = False,
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            rich_help_panel=_HEAD,
            help="Leave images unanswered, so that P of the answers are right.",
        ),
    ] = None,
    abstain_by: Annotated[
        str,
        typer.Option(
            help="Which images then: probability, energy or distance.", rich_help_panel=_HEAD
        ),
    ] = "probability",
    novelty: Annotated[
        str,
        typer.Option(
            help="Flag images unlike the training images: mahalanobis, knn or none.",
            rich_help_panel=_HEAD,
        ),
    ] = "mahalanobis",
    novelty_share: Annotated[
        float,
        typer.Option(help="Share of images like them that is flagged, too.", rich_help_panel=_HEAD),
    ] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the folds and the head.")] = 0,
    test_fraction: Annotated[
        float,
        typer.Option(min=0.01, max=0.9, help="Part set aside for the test when none is given."),
    ] = 0.2,
    learning_curve: Annotated[
        bool,
        typer.Option(
            "--learning-curve",
            help="Measure the accuracy with fewer images, and say what twice as many would bring.",
        ),
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Repeat a run from its config.json, with --out."),
    ] = None,
    pooling: options.PoolingName = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    precision: options.Precision = "auto",
    backend: options.Backend = "auto",
    compiled: options.Compiled = False,
    size: options.Size = None,
    resize: options.Resize = None,
    exact: options.Exact = False,
    bands: options.Bands = None,
    normalize: options.Normalize = None,
    rope: options.Rope = "float32",
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    batch_size: options.BatchSize = None,
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    split_column: options.SplitColumn = None,
    group_column: options.GroupColumn = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Features that memory may hold, such as 2GB; more are read from files beside the "
            "run (default: half of what is free).",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Corrections of labels that dinoprobe open wrote: labels.csv.",
            rich_help_panel="Tables",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The split.csv of another run, to keep its parts.",
            rich_help_panel="Tables",
        ),
    ] = None,
    store: options.Store = None,
    bundle_encoder: Annotated[
        bool,
        typer.Option(
            "--bundle-encoder", help="Copy the encoder's weights and licence into the classifier."
        ),
    ] = False,
    out: options.Out = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    strict: options.Strict = False,
) -> None:
    """Train a head on labelled images, evaluate it once on the test part, and save everything."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        if config is not None:
            _refuse_flags(context)
        if config is None:  # a slip of the pen is told before torch is imported
            _require_data(data)
            options.require_encoder(encoder)
            options.parse_bands(bands)
        from dinoprobe.encoder import EncoderSettings
        from dinoprobe.train import DataSettings, TrainConfig
        from dinoprobe.train import train as run_training

        if config is not None:
            settings = _repeated(config, out, labels, split)
        else:
            linear = {
                "optimizer": optimizer,
                "lr": lr,
                "epochs": epochs,
                "weight_decay": weight_decay,
                "class_weight": options.parse_by_label("class-weight", class_weight, "balanced"),
            }
            settings = TrainConfig(
                data=DataSettings(
                    source=_require_data(data),
                    path_column=path_column,
                    label_column=label_column,
                    split_column=split_column,
                    group_column=group_column,
                    labels=labels,
                    split=split,
                ),
                encoder=EncoderSettings(
                    name=options.require_encoder(encoder),
                    pooling=pooling,
                    device=device,
                    dtype=dtype,
                    precision=precision,
                    backend=backend,
                    compiled=compiled,
                    size_px=size,
                    resize=resize,
                    exact=exact,
                    bands=options.parse_bands(bands),
                    normalize=normalize,
                    rope=rope,
                    device_map=device_map,
                    max_memory=max_memory,
                ),
                protocol=protocol,
                head=head,
                head_options=_head_options(linear, head_option or []),
                select=select,
                on_the_fly=on_the_fly,
                augment=augment,
                calibrate=calibrate,
                sets=sets,
                coverage=coverage,
                sets_per_class=sets_per_class,
                prior=options.parse_by_label("prior", prior, "uniform"),
                target_accuracy=target_accuracy,
                abstain_by=abstain_by,
                novelty=novelty,
                novelty_share=novelty_share,
                seed=seed,
                test_fraction=test_fraction,
                batch_size=batch_size,
                learning_curve=learning_curve,
                memory=options.parse_memory_size(memory),
                store=store,
                bundle_encoder=bundle_encoder,
                out=out,
                command=_command(),
            )
        trained = run_training(
            settings,
            progress=console.progress(),
            transfer=console.transfer(),
            say=console.say,
        )
        show_run(console, trained)
        console.document(trained.summary)
        console.strict(len(trained.context.failures), asked=strict)


def show_run(console: Console, trained: TrainedRun) -> None:
    """The figures of a run, its doubtful labels, and what to do next."""
    from dinoprobe.cli.show import show_curve, show_outcome

    counts = {part: sum(n.values()) for part, n in trained.context.counts.items()}
    parts = ", ".join(f"{part} {n:,}" for part, n in counts.items())
    classes = len(trained.classifier.classes)
    console.line(f"{sum(counts.values()):,} images of {classes} classes: {parts}")
    console.line(_encoder_line(trained))
    show_outcome(console, trained.path, trained.outcome, trained.context)
    for figures in trained.few_shot:
        console.line(str(figures))
    if trained.context.curve is not None:
        show_curve(console, trained.context.curve)
    if trained.suspects:
        what = "label to look at" if len(trained.suspects) == 1 else "labels to look at"
        console.line(f"{len(trained.suspects)} {what}: {trained.path / 'suspects.csv'}")
    console.line(f"Classifier: {trained.path / 'classifier'}")
    run = shlex.quote(str(trained.path))
    console.line(f"Next: dinoprobe predict {run} IMAGE ...")
    console.line(f"      dinoprobe open {run}    # a page: look at mistakes, correct labels, refit")


def _encoder_line(trained: TrainedRun) -> str:
    encoder = trained.classifier.encoder
    facts = f"{encoder.pooling}, {encoder.dimension} dimensions, {encoder.precision}"
    return f"Encoder: {encoder.name} ({facts})\nProtocol: {trained.context.protocol}"


def _refuse_flags(context: typer.Context) -> None:
    """`--config` repeats a run as it was: of the flags, only these may stand beside it."""
    from dinoprobe.errors import ConfigurationError

    beside = {"config", "labels", "split", "out", "as_json", "quiet", "strict"}
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in beside and source is not None and source.name == "COMMANDLINE":
            shown = name.replace("_", "-")
            msg = f"--config repeats a run as it was; '{shown}' can not be given with it."
            raise ConfigurationError(msg)


def _require_data(data: str | None) -> str:
    from dinoprobe.errors import ConfigurationError

    if data is None:
        msg = "no images were given. Name a folder with one sub-folder per class, or a table."
        raise ConfigurationError(msg)
    return data


def _head_options(given: dict[str, Any], extra: list[str]) -> dict[str, Any]:
    from dinoprobe.errors import ConfigurationError

    found = {name: value for name, value in given.items() if value is not None}
    for item in extra:
        name, separator, value = item.partition("=")
        if not separator or not name:
            msg = f"--head-option {item}: expected NAME=VALUE, such as C=0.1."
            raise ConfigurationError(msg)
        found[name] = options.parse_value(value)
    return found


def _repeated(path: str, out: str | None, labels: str | None, split: str | None) -> TrainConfig:
    """The configuration of a run, with corrections and a split of its own where given."""
    from dataclasses import replace

    from dinoprobe.train import read_train_config

    found = read_train_config(path)
    given = {"labels": labels, "split": split}
    data = replace(found.data, **{name: value for name, value in given.items() if value})
    return replace(found, data=data, out=out, command=_command())


def _command() -> str:
    return shlex.join(["dinoprobe", *sys.argv[1:]])
