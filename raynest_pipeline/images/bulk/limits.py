"""What GET /imagine would refuse: a bulk job goes past it, and asks the painters themselves.

An image far beyond the limits would not only fail: one that runs out of the device's memory makes all
pipeline calls smaller that follow, also those for others.
"""

from collections.abc import Callable

from pydantic import ValidationError

from raynest_pipeline.images.bulk.by_actors import options_of
from raynest_pipeline.images.bulk.plan import Plan
from raynest_pipeline.images.bulk.todo import Row
from raynest_pipeline.serving.parameters import parameters_model

_ASKED = {"prompt": "prompt", "negative_prompt": "negative_prompt", "img_size": "size", "seed": "seed"}
_ASKED |= {"steps": "steps", "guidance": "guidance"}
"""Parameter of GET /imagine -> field of a row."""


def refusals(plan: Plan) -> Callable[[Row], str | None]:
    """Tells why the service would refuse a row; None when it would not, or its limits are not known.

    Raises:
        NotReadyError: The plan's serving options do not go together.
    """
    if not plan.limits:
        return lambda row: None
    model = parameters_model(options_of(plan))

    def refusal(row: Row) -> str | None:
        try:
            model.model_validate({name: row[field] for name, field in _ASKED.items()})
        except ValidationError as error:
            told = (f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors())
            return f"The service refuses the prompt or a parameter. {'; '.join(told)}"
        return None

    return refusal
