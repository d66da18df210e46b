// Runs the Verify of a page of docs/receivers on requests, and prints what it says of each. The
// pages by name are in a file that is made beside this one.
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
)

type request struct {
	Name, Method, URL, Secret string
	Headers                   map[string]string
	Body                      []byte
}

func main() {
	var asked struct{ Cases []request }
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	said := map[string]bool{}
	for _, one := range asked.Cases {
		header := http.Header{}
		for name, value := range one.Headers {
			header.Set(name, value)
		}
		switch verify := pages[os.Args[1]].(type) {
		case func(http.Header, string) bool:
			said[one.Name] = verify(header, one.Secret)
		case func([]byte, http.Header, string) bool:
			said[one.Name] = verify(one.Body, header, one.Secret)
		case func(string, []byte, http.Header, string) bool:
			said[one.Name] = verify(one.URL, one.Body, header, one.Secret)
		case func(string, string, []byte, http.Header, string) bool:
			said[one.Name] = verify(one.Method, one.URL, one.Body, header, one.Secret)
		default:
			panic(fmt.Sprintf("a Verify of another form: %T", verify))
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		panic(err)
	}
}
