"""Flows between measurements and signals: stochastic interpolants, their objectives and sampler."""

from invem import hookimpl


@hookimpl
def invem_objectives() -> dict[str, str]:
    return {
        "scsi": "invem_plugins.flows.scsi:SCSI",
        "sfbd-omni": "invem_plugins.flows.sfbd_omni:SFBDOmni",
    }


@hookimpl
def invem_samplers() -> dict[str, str]:
    return {"interpolant": "invem_plugins.flows.sampler:InterpolantFlow"}
