"""The systems that are measured, one module each: a caller and its server, driven by lines of JSON.

Each runs as a process of its own, under the interpreter that has its packages. So these modules import
nothing of this project but each other (and the product, where it is the system that is measured).
"""
