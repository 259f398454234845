"""Features of whole videos: learned and hand-crafted."""
