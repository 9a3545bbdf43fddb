[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "my_op"
version = "0.1.0"
requires-python = ">=3.10"
dynamic = ["dependencies"] # setup.py adds the torch that the extension is compiled against

[project.optional-dependencies]
test = ["pytest", "numpy", "torchgil"]

[tool.pytest.ini_options]
testpaths = ["tests"]
