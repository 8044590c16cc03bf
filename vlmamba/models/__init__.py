# SPDX-License-Identifier: Apache-2.0
"""The model families, one folder each: configuration, modeling, conversion of official checkpoints."""

# folder and model_type of a vision encoder -> what the names of its classes begin with. Each has a Config, Model,
# ForImageClassification and Backbone, and a converter of official checkpoints
ENCODERS = {
    "efficientvmamba": "EfficientVMamba",
    "localvim": "LocalVim",
    "localvmamba": "LocalVMamba",
    "mamband": "MambaND",
    "mambar": "MambaR",
    "mambavision": "MambaVision",
    "msvmamba": "MSVMamba",
    "plainmamba": "PlainMamba",
    "vim": "Vim",
    "vmamba": "VMamba",
}
ENCODER_CLASSES = ("Backbone", "Config", "ForImageClassification", "Model")
