"""The forward operators of invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_operators() -> dict[str, str]:
    return {
        "anisotropic-blur": "invem_plugins.operators.anisotropic_blur:anisotropic_blur",
        "block-mask": "invem_plugins.operators.block_mask:block_mask",
        "box-mask": "invem_plugins.operators.box_mask:box_mask",
        "chain": "invem_plugins.operators.chain:in_turn",
        "clip": "invem_plugins.operators.clip:clip",
        "crop": "invem_plugins.operators.crop:crop",
        "defocus-blur": "invem_plugins.operators.defocus_blur:defocus_blur",
        "downsample": "invem_plugins.operators.downsample:downsample",
        "fan-beam": "invem_plugins.operators.fan_beam:fan_beam",
        "fourier-mask": "invem_plugins.operators.fourier_mask:fourier_mask",
        "gain": "invem_plugins.operators.gain:gain",
        "gamma": "invem_plugins.operators.gamma:gamma",
        "gaussian-blur": "invem_plugins.operators.gaussian_blur:gaussian_blur",
        "grayscale": "invem_plugins.operators.grayscale:grayscale",
        "hadamard": "invem_plugins.operators.hadamard:hadamard",
        "half-mask": "invem_plugins.operators.half_mask:half_mask",
        "identity": "invem_plugins.operators.identity:identity",
        "jpeg": "invem_plugins.operators.jpeg:jpeg",
        "kernel-blur": "invem_plugins.operators.kernel_blur:kernel_blur",
        "mask-file": "invem_plugins.operators.mask_file:mask_file",
        "motion-blur": "invem_plugins.operators.motion_blur:motion_blur",
        "multi-coil-mri": "invem_plugins.operators.multi_coil_mri:multi_coil_mri",
        "pad": "invem_plugins.operators.pad:pad",
        "phase-retrieval": "invem_plugins.operators.phase_retrieval:phase_retrieval",
        "radon": "invem_plugins.operators.radon:radon",
        "random-mask": "invem_plugins.operators.random_mask:random_mask",
        "random-projection": "invem_plugins.operators.random_projection:random_projection",
        "stack": "invem_plugins.operators.stack:beside",
        "structured-projection": (
            "invem_plugins.operators.structured_projection:structured_projection"
        ),
        "sum": "invem_plugins.operators.sum:added",
        "varying-blur": "invem_plugins.operators.varying_blur:varying_blur",
    }
