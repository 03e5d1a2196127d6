# Without a GPU:
#   docker build --tag emnist-dali .
#   docker run --rm --publish 127.0.0.1:8000:8000 emnist-dali     # serves the model in the package
#   docker run --rm --user "$(id -u)" --volume "$PWD:/work" emnist-dali predict photo.jpg
FROM python:3.13-slim

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# torch and torchvision for CPUs, in the versions that the tests have; DALI's 0.9 GB are of no use without a GPU.
RUN --mount=type=bind,target=/src,rw \
    pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        --constraint /src/requirements/constraints.txt '/src[export,heic,serve]' && \
    pip freeze | grep --only-matching '^nvidia-[^=]*' | xargs pip uninstall --yes && \
    useradd --uid 1000 --create-home user && \
    install --directory --owner=user /work

USER 1000
WORKDIR /work
EXPOSE 8000
# As process 1 the server is deaf to SIGTERM, for which Python has no handler; a training ends in the same way on both.
STOPSIGNAL SIGINT
ENTRYPOINT ["emnist-dali"]
CMD ["serve", "--host", "0.0.0.0"]
