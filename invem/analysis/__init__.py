"""What observations can tell before and while a prior is learned: spectra and calibration."""
