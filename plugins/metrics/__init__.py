"""The metrics of invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_metrics() -> dict[str, str]:
    return {
        "calibration": "invem_plugins.metrics.calibration:Calibration",
        "data-misfit": "invem_plugins.metrics.data_misfit:DataMisfit",
        "frechet": "invem_plugins.metrics.frechet:Frechet",
        "memorisation": "invem_plugins.metrics.memorisation:Memorisation",
        "observation-distance": "invem_plugins.metrics.observation_distance:ObservationDistance",
        "observation-likelihood": (
            "invem_plugins.metrics.observation_likelihood:ObservationLikelihood"
        ),
        "psnr": "invem_plugins.metrics.psnr:PSNR",
        "residual-correlation": ("invem_plugins.metrics.residual_correlation:ResidualCorrelation"),
        "self-consistency": "invem_plugins.metrics.self_consistency:SelfConsistency",
        "sinkhorn": "invem_plugins.metrics.sinkhorn:Sinkhorn",
        "sliced-wasserstein": "invem_plugins.metrics.sliced_wasserstein:SlicedWasserstein",
        "ssim": "invem_plugins.metrics.ssim:SSIM",
        "sure": "invem_plugins.metrics.sure:Sure",
    }
