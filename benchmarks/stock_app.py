"""What benchmarks/serving.py measures against: it behaves as KubeRay's stable diffusion sample.

The same in shape: an ingress that awaits one image per request and writes it as PNG, at Pillow's default
compression, in its event loop; a model deployment whose synchronous `generate` paints one image per call, at
Serve's default of 5 requests at a time in its thread pool, over one pipeline with the Euler solver.
Different: the model, its steps and its device are arguments, and there is one replica where the sample allows
a second one, for which its single GPU worker has no room.
"""

from io import BytesIO
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from ray import serve
from ray.serve.handle import DeploymentHandle

api = FastAPI()


@serve.deployment(name="StockIngress", num_replicas=1, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class StockIngress:
    """One image per request."""

    def __init__(self, painter: DeploymentHandle) -> None:
        self.painter = painter

    @api.get("/imagine", response_class=Response)
    async def imagine(self, prompt: str, img_size: int = 512) -> Response:
        """Paint, compress, answer."""
        image = await self.painter.generate.remote(prompt, img_size=img_size)
        stream = BytesIO()
        image.save(stream, "PNG")
        return Response(content=stream.getvalue(), media_type="image/png")


@serve.deployment(name="StockPainter")
class StockPainter:
    """One image per pipeline call; the calls share the pipeline."""

    def __init__(self, folder: str, steps: int) -> None:
        import torch
        from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.steps = steps
        self.pipe = StableDiffusionPipeline.from_pretrained(
            folder,
            scheduler=EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
            torch_dtype=torch.float16 if self.device == "cuda" else torch.float32,
        ).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)

    def generate(self, prompt: str, img_size: int = 512) -> Any:
        """A PIL image."""
        import torch

        with torch.autocast(self.device, enabled=self.device == "cuda"):
            return self.pipe(prompt, height=img_size, width=img_size, num_inference_steps=self.steps).images[
                0
            ]


def build(folder: str, steps: int, device: dict[str, float], at_a_time: int | None) -> serve.Application:
    """The application over the model in `folder`. `at_a_time`: requests in work; None: Serve's default, 5."""
    knobs: dict[str, Any] = {} if at_a_time is None else {"max_ongoing_requests": at_a_time}
    painter = StockPainter.options(ray_actor_options=device, **knobs).bind(folder, steps)
    return StockIngress.bind(painter)
