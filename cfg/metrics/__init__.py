"""Numbers from features: streaming statistics, FID, IS, precision, recall, KID, and reference
files. numpy alone.
"""
