"""Where videos are: local files, members of tar files, objects behind a URL. FFmpeg itself only opens local files."""
