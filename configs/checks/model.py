"""Settings of the network that are valid alone and not together."""

from collections.abc import Iterator

from configs.checks.problem import problem_with
from configs.problems import Problem, shown
from configs.schema import Config, Stage


def model_problems(config: Config) -> Iterator[Problem]:
    """A network that nobody has built, or weights for it that nobody has."""
    model, scaling = config.model, ("model.compound_phi", "model.width_multiplier", "model.depth_multiplier")
    explicit = model.width_multiplier is not None or model.depth_multiplier is not None
    if model.compound_phi is not None and explicit:
        yield problem_with(config, "model.compound_phi", "null beside width_multiplier or depth_multiplier", *scaling)
    if config.width_and_depth is not None:
        if model.name != "efficientnet_b0" and not model.stages:
            yield problem_with(config, "model.name", "efficientnet_b0: scaling starts from it", *scaling)
        if model.pretrained and not model.stages:
            accepted = "false: no weights are published for a scaled network"
            yield problem_with(config, "model.pretrained", accepted, *scaling)
    if model.stages:
        if model.name != "efficientnet_b0":
            yield problem_with(
                config, "model.name", "efficientnet_b0: model.stages take the place of its", "model.stages"
            )
        if model.pretrained:
            accepted = "false: no weights are published for such stages"
            yield problem_with(config, "model.pretrained", accepted, "model.stages")
    for number, stage in enumerate(model.stages):
        key = f"model.stages[{number}]"
        if stage.channels % 8:
            yield Problem(
                key=key, received=f"channels: {stage.channels}", accepted="a multiple of 8: timm rounds to it"
            )
        for name, blocks in (("expansion", ("ir", "er")), ("se_ratio", ("ir", "er", "ds"))):
            given = getattr(stage, name)
            if stage.block not in blocks and given != Stage.model_fields[name].default:
                accepted = f"no {name}: it has an effect with block = {' or '.join(blocks)} only"
                yield Problem(key=f"{key}.{name}", received=shown(given), accepted=accepted)
    if model.pretrained and model.checkpoint_path is not None:
        yield problem_with(config, "model.checkpoint_path", "null beside model.pretrained = true", "model.pretrained")
    if model.freeze_backbone_epochs >= config.trainer.max_epochs:
        accepted = f"less than trainer.max_epochs = {config.trainer.max_epochs}"
        yield problem_with(config, "model.freeze_backbone_epochs", accepted, "trainer.max_epochs")
