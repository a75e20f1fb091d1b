"""Write LoRA files: conversion, metadata, hashes. May import reading and the files and folders beside it except changing and describing."""
