"""mtlcar: how should one network learn several related tasks?"""

__version__ = "0.1.0"
