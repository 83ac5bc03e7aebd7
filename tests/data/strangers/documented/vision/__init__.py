from vision.patches import PatchNet
