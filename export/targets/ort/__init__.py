"""ONNX Runtime's own format for mobile builds: conversion, and what may not be taken apart on the way."""
