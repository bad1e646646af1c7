from typing import Any

import pytest

from raynest_pipeline.images.offer import Offer, offer_from, parameters_of, request_for
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.settings import Batch

OURS = Offer(
    parameters=frozenset({"prompt", "img_size", "seed", "steps", "guidance", "negative_prompt"}),
    model="m",
    revision="r",
    defaults={"img_size": 512, "steps": 25, "guidance": 7.5},
    documented=True,
)
PROMPT = Prompt("a", "a cat", 3)


def openapi(*names: str, **schemas: Any) -> dict[str, Any]:
    parameters = [{"name": n, "in": "query", "schema": schemas.get(n, {})} for n in names]
    return {"paths": {"/imagine": {"get": {"parameters": parameters}}}}


def test_the_stock_application_is_understood() -> None:
    offer = offer_from(openapi("prompt", "img_size", img_size={"default": 512}), {})
    assert offer == Offer(frozenset({"prompt", "img_size"}), "", "", {"img_size": 512}, True)


def test_ours_tells_model_and_defaults_by_its_health() -> None:
    health = {"model": "m", "revision": None, "native_size": 96, "default_steps": 20, "default_guidance": 4.0}
    offer = offer_from(openapi("prompt", "seed"), health)
    assert offer is not None
    assert (offer.model, offer.revision) == ("m", "")
    assert offer.defaults == {"img_size": 96, "steps": 20, "guidance": 4.0}


@pytest.mark.parametrize("document", [{}, {"paths": []}, {"paths": {"/other": {"get": {}}}}, {"paths": None}])
def test_a_document_without_imagine_is_no_offer(document: dict[str, Any]) -> None:
    assert parameters_of(document) is None
    assert offer_from(document, {}) is None


def test_odd_documents_do_not_break() -> None:
    document = {"paths": {"/imagine": {"get": {"parameters": ["x", {"in": "header", "name": "h"}]}}}}
    assert parameters_of(document) == {}
    assert offer_from(document, {"native_size": "big", "default_steps": True, "model": 5}) == Offer(
        frozenset(), "5", "", {}, True
    )


def test_the_prompts_values_beat_the_settings_which_beat_the_endpoints() -> None:
    settings = Batch(size=64, steps=30)
    own = request_for(Prompt("a", "a cat", 3, size=128, guidance=0.0), settings, OURS)
    assert (own.size, own.steps, own.guidance) == (128, 30, 0.0)
    assert own.query == {"prompt": "a cat", "seed": 3, "img_size": 128, "steps": 30, "guidance": 0.0}
    plain = request_for(PROMPT, Batch(), OURS)
    assert (plain.size, plain.steps, plain.guidance) == (512, 25, 7.5)
    assert plain.query == {"prompt": "a cat", "seed": 3}


def test_saying_the_default_or_leaving_it_out_is_the_same_image() -> None:
    said = request_for(Prompt("a", "a cat", 3, size=512, steps=25, guidance=7.5), Batch(), OURS)
    assert said.key == request_for(PROMPT, Batch(), OURS).key


def test_the_model_and_its_revision_are_part_of_the_key() -> None:
    keys = {
        request_for(PROMPT, Batch(), Offer(model=model, revision=revision)).key
        for model, revision in [("m", ""), ("n", ""), ("m", "r")]
    }
    assert len(keys) == 3


def test_what_the_endpoint_does_not_take_is_neither_sent_nor_hidden() -> None:
    asked = Prompt("a", "a cat", 3, negative_prompt="blur", size=64, steps=5)
    request = request_for(asked, Batch(), Offer())
    assert request.query == {"prompt": "a cat", "img_size": 64}
    assert request.ignored == ("negative_prompt", "seed", "steps")
    assert (request.negative_prompt, request.steps) == ("", None)


def test_seeds_tell_images_apart_even_where_they_are_not_sent() -> None:
    one, two = (request_for(Prompt("a", "a cat", seed), Batch(), Offer()) for seed in (1, 2))
    assert one.query == two.query and one.key != two.key


@pytest.mark.parametrize(
    ("model", "untrained"), [("tiny-untrained (random weights)", True), ("sd-v1-5", False), ("", False)]
)
def test_an_untrained_model_says_so(model: str, untrained: bool) -> None:
    assert Offer(model=model).untrained is untrained
