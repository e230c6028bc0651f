"""The process of `sensai node`: serves some workers of a bundle to gateways on other machines."""
