"""Where subnets run. A backend is a file here with a class ``Backend``; `serving.backends.base` is what it must do."""
