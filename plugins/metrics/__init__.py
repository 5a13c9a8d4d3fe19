"""Metrics that come with invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_metrics() -> dict[str, str]:
    return {
        "data-misfit": "invem_plugins.metrics.data_misfit:DataMisfit",
        "frechet": "invem_plugins.metrics.frechet:Frechet",
        "psnr": "invem_plugins.metrics.psnr:PSNR",
        "sliced-wasserstein": "invem_plugins.metrics.sliced_wasserstein:SlicedWasserstein",
        "ssim": "invem_plugins.metrics.ssim:SSIM",
    }
