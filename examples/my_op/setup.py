"""Builds my_op._C against the torch of this environment: pip install --no-build-isolation -e ."""

import torch
import torchgil
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

setup(
    packages=["my_op"],
    ext_modules=[
        CppExtension(
            "my_op._C",
            ["csrc/my_op.cpp"],
            # Headers alone: my_op needs torchgil to be built and tested, not to run.
            include_dirs=[torchgil.get_include()],
            # Without -fopenmp at::parallel_for uses one thread; with -g compiling takes twice the time.
            extra_compile_args=["-O3", "-g0", "-fopenmp", "-fvisibility=hidden"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
    # An extension fits the torch that it was compiled against, and no other.
    install_requires=["torch==" + torch.__version__.split("+")[0]],
)
