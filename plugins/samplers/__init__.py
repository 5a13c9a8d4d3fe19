"""Posterior samplers that come with invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_samplers() -> dict[str, str]:
    return {
        "auto": "invem_plugins.samplers.auto:Auto",
        "conditional": "invem_plugins.samplers.conditional:Conditional",
        "daps": "invem_plugins.samplers.daps:DAPS",
        "daps-mm": "invem_plugins.samplers.daps_mm:DAPSMM",
        "ddnm": "invem_plugins.samplers.ddnm:DDNM",
        "ddrm": "invem_plugins.samplers.ddrm:DDRM",
        "dds": "invem_plugins.samplers.dds:DDS",
        "diffpir": "invem_plugins.samplers.diffpir:DiffPIR",
        "dps": "invem_plugins.samplers.dps:DPS",
        "exact": "invem_plugins.samplers.exact:Exact",
        "langevin": "invem_plugins.samplers.langevin:AnnealedLangevin",
        "lgd": "invem_plugins.samplers.lgd:LGD",
        "matched-gibbs": "invem_plugins.samplers.matched_gibbs:MatchedGibbs",
        "mcg-diff": "invem_plugins.samplers.mcg_diff:MCGDiff",
        "mmps": "invem_plugins.samplers.mmps:MMPS",
        "mpgd": "invem_plugins.samplers.mpgd:MPGD",
        "observation": "invem_plugins.samplers.observation:Observation",
        "pigdm": "invem_plugins.samplers.pigdm:PiGDM",
        "prior": "invem_plugins.samplers.prior:PriorSampler",
        "pseudo-inverse": "invem_plugins.samplers.pseudo_inverse:PseudoInverse",
        "red-diff": "invem_plugins.samplers.red_diff:REDDiff",
        "sfbd": "invem_plugins.samplers.sfbd:SFBD",
        "sitcom": "invem_plugins.samplers.sitcom:SITCOM",
        "split-gibbs": "invem_plugins.samplers.split_gibbs:SplitGibbs",
        "tmpd": "invem_plugins.samplers.tmpd:TMPD",
        "total-variation": "invem_plugins.samplers.total_variation:TotalVariation",
        "twisted-smc": "invem_plugins.samplers.twisted_smc:TwistedSMC",
        "wiener": "invem_plugins.samplers.wiener:Wiener",
    }
